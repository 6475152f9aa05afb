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
