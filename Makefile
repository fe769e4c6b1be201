# Two commands for users (run, test); the rest for us. Each makes what it needs and can be run on a fresh machine.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OPA    := .tools/opa-v1.22.2.stamp
NODE   := tests/support/node/node_modules/.installed
# Half of the suite waits for real time: one worker more than there are processors waits beside the others. A worker that
# a hanging test has taken with it is not replaced: with one that was, a run was seen to wait for ever.
WORKERS ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )))
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: run test check format lock clean opa redis chromium node

run: $(VENV)/run.stamp
	@exec $(BIN)/python -m deploy.demo.run

test: $(VENV)/dev.stamp
	@if command -v go >/dev/null; then $(MAKE) --no-print-directory opa || echo "opa could not be built; its tests are skipped"; fi
	@$(MAKE) --no-print-directory redis || echo "redis-server could not be installed; its tests are skipped"
	@$(MAKE) --no-print-directory chromium || echo "chromium could not be installed; its tests are skipped"
	@$(MAKE) --no-print-directory node || echo "node could not be installed; its tests are skipped"
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --max-worker-restart 0

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing what Weighbridge runs on ..."
	$(PIP) install --require-hashes --requirement requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock $(VENV)/run.stamp
	@echo "installing what its tests need ..."
	$(PIP) install --require-hashes --requirement requirements-dev.lock
	@touch $@

# The real OPA, for the tests that compare with it. Needs Go.
opa: $(OPA)

$(OPA):
	@echo "building opa for the tests ..."
	@mkdir -p .tools
	GOBIN="$(CURDIR)/.tools/bin" go install github.com/open-policy-agent/opa@$(patsubst .tools/opa-%.stamp,%,$@)
	@touch $@

# A real Redis, for the tests of a shared state, from the system's package manager. It is not started: tests do that.
AS_ROOT = $(shell [ "$$(id -u)" = 0 ] || echo sudo -n)
redis:
	@command -v redis-server >/dev/null && exit; echo "installing redis-server for the tests ..."; \
	if command -v apt-get >/dev/null; then \
	  $(AS_ROOT) apt-get -qq update && \
	  $(AS_ROOT) env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends redis-server; \
	elif command -v dnf >/dev/null; then $(AS_ROOT) dnf -q -y install redis; \
	elif command -v apk >/dev/null; then $(AS_ROOT) apk add -q redis; \
	elif command -v brew >/dev/null; then brew install -q redis; \
	else exit 1; fi

# A real browser, for the tests of the console. Its names are those that tests/support/browser.py looks for.
chromium:
	@for each in chromium chromium-browser google-chrome; do command -v $$each >/dev/null && exit; done; \
	echo "installing chromium for the tests ..."; \
	if command -v apt-get >/dev/null; then \
	  $(AS_ROOT) apt-get -qq update && \
	  $(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends chromium; \
	elif command -v dnf >/dev/null; then $(AS_ROOT) dnf -q -y install chromium; \
	elif command -v apk >/dev/null; then $(AS_ROOT) apk add -q chromium; \
	else exit 1; fi

# A Node, and the MCP clients and the conformance suite that others have written for it, in the versions of the lock.
node: $(NODE)

$(NODE): tests/support/node/package-lock.json
	@command -v npm >/dev/null && exit; echo "installing npm for the tests ..."; \
	if command -v apt-get >/dev/null; then \
	  $(AS_ROOT) apt-get -qq update && \
	  $(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends npm; \
	elif command -v dnf >/dev/null; then $(AS_ROOT) dnf -q -y install npm; \
	elif command -v apk >/dev/null; then $(AS_ROOT) apk add -q npm; \
	elif command -v brew >/dev/null; then brew install -q node; \
	else exit 1; fi
	@echo "installing what is run on node in the tests ..."
	npm ci --prefix tests/support/node --ignore-scripts --loglevel=error
	@touch $@

# Needs uv; hashes come from the index, its address never enters the files.
LOCK = uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes --no-header --group build
lock:
	$(LOCK) --output-file requirements.lock
	$(LOCK) --group dev --output-file requirements-dev.lock

clean:
	rm -rf $(VENV) .tools var tests/support/node/node_modules
