# Everything a developer runs. `make` alone lists it.

TOOL  := go tool -modfile=tools/go.mod
PARTS := go run ./internal/testenv/cmd/parts --
# One test binary that hangs must not take the whole run with it.
LIMIT := 40m

.DEFAULT_GOAL := help
.PHONY: help run test e2e lint vuln generate bench

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## start everything in one process, on embedded parts
	go run ./cmd/zimage up

test: ## all tests but e2e, on real PostgreSQL, Redis and MinIO, with the race detector
	$(PARTS) go test -race -timeout $(LIMIT) $$(go list ./... | grep -v /internal/e2e)
	$(PARTS) go test -timeout $(LIMIT) -run 'EightHundredDays|AtEveryStepOfAnErasure' ./internal/privacy

e2e: ## the fault matrix: real processes that are killed, stopped and cut off
	$(PARTS) go test -race -count=1 -timeout 30m ./internal/e2e/...

lint: ## formatting, vet, golangci-lint with the floors, go.mod, known vulnerabilities
	@unformatted=$$(gofmt -l client cmd deploy docs internal); if [ -n "$$unformatted" ]; then echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	$(TOOL) golangci-lint run ./...
	go mod tidy -diff
	go mod verify
	@$(MAKE) --no-print-directory vuln

vuln: ## known vulnerabilities in what the program really calls
	@.ci/vuln

generate: ## the Go client, after a change of the API
	go generate ./client

# Packages with benchmarks; BENCH=Claim runs those whose name matches.
BENCH := .
bench: ## figures, each as a ratio to a floor measured in the same run; one package at a time
	$(PARTS) go test -p 1 -run '^$$' -bench '$(BENCH)' -timeout 60m \
		$$(grep -rl --include='*_test.go' '^func Benchmark' internal | xargs -n1 dirname | sort -u | sed 's|^|./|')
