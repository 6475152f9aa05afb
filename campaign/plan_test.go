package main

import (
	"testing"
	"time"
)

// TestPlan holds that a seed stands for one plan, in which every kind of fault comes.
func TestPlan(t *testing.T) {
	t.Parallel()
	const faults = 150
	all := allFaults(options{duration: 6 * time.Minute})
	plan, last := makePlan(7, all, faults, 6*time.Minute, []string{""})
	again, _ := makePlan(7, all, faults, 6*time.Minute, []string{""})
	other, _ := makePlan(8, all, faults, 6*time.Minute, []string{""})
	same, kinds := 0, map[string]bool{}
	for _, st := range last {
		kinds[st.fault.name] = true
	}
	for i, st := range plan {
		if st.fault.name != again[i].fault.name || st.gap != again[i].gap || st.hold != again[i].hold || st.seed != again[i].seed {
			t.Fatalf("step %d differs between two plans of one seed", i)
		}
		if st.fault.name == other[i].fault.name {
			same++
		}
		kinds[st.fault.name] = true
	}
	if same == len(plan) {
		t.Error("two seeds make one plan")
	}
	names := map[string]bool{}
	for _, f := range all {
		if names[f.name] {
			t.Errorf("two faults are called %q", f.name)
		}
		names[f.name] = true
		if !kinds[f.name] {
			t.Errorf("%q is not in a plan of %d faults", f.name, faults)
		}
		if f.group == "" && !f.alone {
			t.Errorf("%q has no group", f.name)
		}
	}
}

// TestPlanOfMany holds that what takes longer each time does not come again and again.
func TestPlanOfMany(t *testing.T) {
	t.Parallel()
	all := allFaults(options{duration: time.Hour})
	long, _ := makePlan(7, all, 2000, time.Hour, []string{""})
	only, _ := makePlan(7, all, 2000, time.Hour, []string{"made anew"})
	for _, plan := range [][]step{long, only} {
		times := 0
		for _, st := range plan {
			if st.fault.name == "table dropped and made anew, then repaired" {
				times++
			}
		}
		if times != 2 {
			t.Errorf("the table is made anew %d times in %d faults, want 2", times, len(plan))
		}
	}
	if len(long) < 2000 {
		t.Errorf("%d faults, want 2000", len(long))
	}
}

// TestInOrder holds that a round begins with what others would have to wait for.
func TestInOrder(t *testing.T) {
	t.Parallel()
	of := func(name string, hold time.Duration, alone bool) step {
		return step{fault: fault{name: name, alone: alone}, hold: hold}
	}
	got := ""
	for _, st := range inOrder([]step{of("a", 1, false), of("b", time.Minute, false), of("c", 1, true), of("d", 1, false), of("e", time.Minute, true)}) {
		got += st.fault.name
	}
	if got != "cebad" {
		t.Errorf("the order is %s, want cebad", got)
	}
}
