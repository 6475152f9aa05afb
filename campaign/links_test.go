package main

import (
	"testing"
)

// TestToxicOfAProxyThatHangs adds a toxic to a proxy that hangs, and heals it: the proxy is given up for a new one, and nothing is left to heal.
func TestToxicOfAProxyThatHangs(t *testing.T) {
	t.Parallel()
	const port = 19_000
	l, err := openLink(t.Context(), "test", "postgres://127.0.0.1:9/", port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.down(); l.hop.close() })
	hangs := l.proxy
	hangs.Toxics.Lock()
	heal, err := l.add(`{"type": "latency", "attributes": {"latency": 1}}`)
	if err != nil {
		t.Fatal(err)
	}
	if l.proxy == hangs {
		t.Error("the proxy that hangs is still there")
	}
	if err := heal(t.Context()); err != nil {
		t.Error(err)
	}
	hangs.Toxics.Unlock()
	heal, err = l.add(`{"type": "latency", "attributes": {"latency": 1}}`)
	if err != nil || len(l.proxy.Toxics.GetToxicArray()) != 1 {
		t.Fatalf("%d toxics, %v", len(l.proxy.Toxics.GetToxicArray()), err)
	}
	if err := heal(t.Context()); err != nil || len(l.proxy.Toxics.GetToxicArray()) != 0 {
		t.Errorf("%d toxics are left, %v", len(l.proxy.Toxics.GetToxicArray()), err)
	}
}
