# What a developer of postrider runs. `make help` lists it.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

MODULES  := . tests
BINARIES := ingress resolver delivery scheduler bounce postrider

# Settings: make fuzz FUZZTIME=10m, make bench BENCH="-workload a,b -rounds 3"
FUZZTIME      ?= 30s
BENCH         ?=
SOAK_MESSAGES ?= 100000
TEST          ?= .

# Linters and generators live in a module of their own, outside go.work: what
# they need must not reach the services (docs/decisions/0005).
TOOLS      := bin/tools
tools_path  = PATH="$(CURDIR)/$(TOOLS):$$PATH"

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: ## build postrider and run all of it on this machine (Ctrl-C stops it)
	@[ -x bin/postrider ] || echo "building postrider; the first time takes a minute or two"
	@go build -o bin/ ./services/postrider/cmd/postrider
	@exec bin/postrider dev

.PHONY: build
build: ## build the binaries into bin/
	go build -trimpath -o bin/ $(foreach b,$(BINARIES),./services/$(b)/cmd/$(b))

.PHONY: deps
deps: ## install what the tests need (as root), or say what is missing
	@tests/deps.sh

.PHONY: test
test: deps ## run all tests: unit with the race detector, then end to end
	go test -race -timeout 20m ./...
	go test -p 1 -timeout 50m ./tests/...

.PHONY: unit
unit: ## run the tests of the product alone, without the race detector
	go test ./...

.PHONY: e2e
e2e: deps ## run the end-to-end tests; TEST=Regexp picks some
	go test -p 1 -timeout 50m -v -run '$(TEST)' ./tests/...

.PHONY: soak
soak: deps ## run the kill tests with many messages (SOAK_MESSAGES)
	POSTRIDER_CHAOS_MESSAGES=$(SOAK_MESSAGES) go test -timeout 6h -v ./tests/chaos

.PHONY: fuzz
fuzz: ## fuzz every target for FUZZTIME
	@go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./... | while read -r package; do \
		go test -list '^Fuzz' "$$package" | { grep '^Fuzz' || true; } | while read -r target; do \
			echo "== $$package $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$package" < /dev/null; \
		done; \
	done

.PHONY: bench
bench: deps ## measure postrider beside a tuned Postfix (BENCH=flags)
	go run ./tests/bench $(BENCH)

.PHONY: check
check: $(TOOLS)/stamp ## formatting, vet, lint, generated code, house rules, go.mod files
	@unformatted=$$(gofmt -l *.go migrations pkg proto services tests); \
		[ -z "$$unformatted" ] || { echo "not formatted, run gofmt -w on:"; echo "$$unformatted"; exit 1; }
	go vet ./... ./tests/...
	@for m in $(MODULES); do echo "golangci-lint in $$m"; (cd $$m && "$(CURDIR)/$(TOOLS)/golangci-lint" run ./...); done
	@$(MAKE) --no-print-directory up-to-date
	go test -count 1 .
	@for m in $(MODULES); do echo "go mod tidy -diff in $$m"; GOWORK=off go -C $$m mod tidy -diff; done
	GOWORK=off go -C tools mod verify

.PHONY: generate
generate: $(TOOLS)/stamp ## make the generated code and documents again
	$(tools_path) buf lint proto
	$(tools_path) buf generate proto --template proto/buf.gen.yaml -o proto
	go generate ./...

# What generate writes must be what is committed. The working tree may have
# other changes, so this compares before and after, not with git.
generated = $$(find proto docs pkg services -type f \( -name '*.pb.go' -o -name '*.md' -o -name '*.txt' \) -exec cksum {} + | sort)
.PHONY: up-to-date
up-to-date:
	@before="$(generated)"; $(MAKE) --no-print-directory generate; \
		[ "$$before" = "$(generated)" ] || { echo "generated files were out of date; they are made anew now: commit them"; exit 1; }

# The contracts must still be read by version N-1: compares with a branch.
.PHONY: breaking
breaking: $(TOOLS)/stamp ## check that the bus contracts stay compatible with branch main
	$(tools_path) buf breaking proto --against '.git#branch=main,subdir=proto'

$(TOOLS)/stamp: tools/go.mod tools/go.sum
	@mkdir -p $(TOOLS)
	GOWORK=off go -C tools build -o ../$(TOOLS)/ tool
	@touch $@

.PHONY: clean
clean: ## remove what make built; the queue of make run stays
	rm -rf bin
