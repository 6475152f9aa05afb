// Package check holds what is in deploy/ and .github/ against the programs and their documents: rules and dashboard against docs/metrics.md
// and docs/runbook.md, Kubernetes manifests against the types of the Kubernetes API, units against systemd, workflows against the syntax of
// GitHub Actions, all against the settings that the programs have. It is a module of its own, because none of those libraries should reach
// the product's go.mod.
package check
