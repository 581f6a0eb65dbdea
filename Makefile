# Shoal: many Linux hosts, one Docker engine. `make help` lists the targets.

SHELL      := /bin/bash
GO         ?= go
TAGS       ?= seccomp
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS    := -s -w -X main.version=$(VERSION)
SUPERVISOR := node/supervisor/embedded/bin/shoal-supervisor
BIN        := bin/shoal
SUDO       := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
RACE       ?= -race
# Packages whose tests need nothing but Go, and those that need root and Linux.
TESTFLAGS  ?= -shuffle=on -timeout 15m
# Whole clusters in fake time run without the race detector: its runtime fails its
# own checks there about once in five runs (ThreadSanitizer: CHECK failed:
# tsan_rtl.cpp:346, or a fault inside it). By hand: go test -race ./cluster/membership
FAKETIME   := /(cluster/(membership|clustertest)|transfer/scale)$$

export CGO_ENABLED = 1

.PHONY: help setup build demo test test-unit test-integration chaos sim fuzz bench lint fmt check tidy-check cover install clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install the system packages that building, testing and the demo need
	@integration/setup.sh

build: $(BIN) ## Build bin/shoal, the one binary

# The supervisor is a small program of its own: it parents every container, and
# what it doesn't link is not paid for at each start. The big binary carries it.
$(SUPERVISOR): go.mod $(shell find node/supervisor node/runtime node/image/early -name '*.go' 2>/dev/null)
	$(GO) run ./node/supervisor/mksupervisor -o $@

$(BIN): $(SUPERVISOR) go.mod $(shell find api node cluster discovery transfer scheduler cmd integration/lab -name '*.go' -o -name '*.tmpl' 2>/dev/null)
	$(GO) build -tags '$(TAGS)' -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/shoal

bin/webapp: $(wildcard integration/webapp/*.go)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $@ ./integration/webapp

bin/mkimage: $(wildcard integration/mkimage/*.go) $(wildcard api/apitest/*.go)
	$(GO) build -trimpath -o $@ ./integration/mkimage

demo: setup build bin/webapp bin/mkimage ## Three hosts, one engine: the whole story in two minutes
	@$(SUDO) integration/demo/demo.sh

test: setup build bin/webapp bin/mkimage test-unit test-integration ## Every test

test-unit: $(SUPERVISOR) ## Tables, properties, whole clusters in memory, and the parts on this kernel
	$(GO) vet -tags '$(TAGS)' ./...
	$(GO) test -tags '$(TAGS)' $(RACE) $(TESTFLAGS) $$($(GO) list ./... | grep -vE '/integration|$(FAKETIME)')
	$(GO) test -tags '$(TAGS)' $(TESTFLAGS) $$($(GO) list ./... | grep -E '$(FAKETIME)')

test-integration: build bin/webapp bin/mkimage ## Real agents in namespaces, real clients
	$(GO) test -tags '$(TAGS)' $(TESTFLAGS) -p 1 -v ./integration/...

CHAOS_TIME ?= 5m
chaos: build bin/mkimage ## Break five agents for CHAOS_TIME while they work; CHAOS_SEED=N replays
	CHAOS_TIME=$(CHAOS_TIME) CHAOS_SEED=$(CHAOS_SEED) $(GO) test -tags '$(TAGS)' -timeout 0 -count 1 -v ./integration/chaos

sim: ## A thousand nodes fetch one blob at once, in fake time
	SWARM_NODES=$(or $(SWARM_NODES),1000) $(GO) test -tags '$(TAGS)' -timeout 30m -count 1 -v ./transfer/scale

fuzz: ## Fuzz every decoder of outside bytes, FUZZTIME each
	@integration/fuzz.sh $(or $(FUZZTIME),20s)

bench: build bin/webapp bin/mkimage ## Measure against the peers a user would pick instead
	@$(SUDO) env "PATH=$$PATH" integration/bench/run.sh

fmt: ## Format the code
	gofmt -w $$(git ls-files '*.go')

lint: ## Import arrows and style (golangci-lint if installed, else vet and gofmt)
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "gofmt would change:"; echo "$$out"; exit 1; }
	$(GO) vet -tags '$(TAGS)' ./...
	@if command -v golangci-lint >/dev/null; then golangci-lint run --build-tags '$(TAGS)'; fi

tidy-check: ## go.mod and go.sum say what the code needs
	$(GO) mod tidy -diff

check: lint tidy-check test ## What CI runs

cover: ## Test coverage as a page, in dist/
	mkdir -p dist && $(GO) test -tags '$(TAGS)' -coverprofile dist/cover.out $$($(GO) list ./... | grep -v /integration) && $(GO) tool cover -html dist/cover.out -o dist/cover.html

install: build ## Install the binary, the systemd unit and completions
	$(SUDO) install -D -m 0755 $(BIN) /usr/local/bin/shoal
	$(SUDO) install -D -m 0644 docs/shoal.service /etc/systemd/system/shoal.service
	$(SUDO) install -d /usr/share/bash-completion/completions
	$(BIN) completion bash | $(SUDO) tee /usr/share/bash-completion/completions/shoal >/dev/null

clean: ## Remove what was built
	rm -rf bin dist $(SUPERVISOR)
