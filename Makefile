# Two commands are enough: `make demo` and `make test`. Each sets up all that it needs, from a fresh clone.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
OUT ?= output
export HF_HUB_OFFLINE = 1

.PHONY: help demo test check types setup host bench pictures lock clean
help:
	@echo "make demo              learn a subject on the built-in model and write a report to $(OUT)/"
	@echo "make test              linters, types, layers and tests"
	@echo "make host              tests and benchmarks in a real ComfyUI, if there is one; FULL=1: the long forms"
	@echo "make bench             list the benchmarks;  make bench NAME=... [QUICK=1] runs one"
	@echo "make pictures          draw thumbnails and help pictures anew;  NAME=... RUN=1: run that workflow first"
	@echo "make lock              resolve requirements-dev.lock anew"

$(VENV)/ready: requirements-dev.lock pyproject.toml
	@command -v uv >/dev/null 2>&1 || $(PYTHON) -m uv --version >/dev/null 2>&1 || $(PYTHON) -m pip install --quiet uv \
		|| ($(PYTHON) -m venv $(VENV)/uv && $(VENV)/uv/bin/pip install --quiet uv)
	@UV="$$(command -v uv || true)"; [ -n "$$UV" ] || UV="$(PYTHON) -m uv"; \
	[ ! -x $(VENV)/uv/bin/uv ] || UV=$(VENV)/uv/bin/uv; \
	echo "Setting up $(VENV) (once) ..."; \
	{ [ -x $(BIN)/python ] || $$UV venv --quiet --allow-existing --python $(PYTHON) $(VENV); } && \
	$$UV pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements-dev.lock && \
	$$UV pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

setup: $(VENV)/ready

demo: setup
	@$(BIN)/likeness run workflows/quickstart.json --output $(OUT)

test: check
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory types
	$(BIN)/lint-imports

# mypy resolves our relative imports only when it meets the tree under the package's name.
types: setup
	@mkdir -p $(VENV)/typed && ln -sfn ../.. $(VENV)/typed/likeness
	cd $(VENV)/typed && ../../$(BIN)/mypy --config-file likeness/pyproject.toml --cache-dir likeness/.mypy_cache \
		$$(cd likeness && git ls-files '*.py' | grep -v '^tests/' | sed 's,^,likeness/,')

host: setup
	$(BIN)/python -m pytest tests/host
	@for name in host-start host-install host-parity $(if $(FULL),host-quickstart) host-workflow host-interrupts host-soak page-speed; do \
		$(BIN)/python -m likeness.benchmarks $$name $(if $(FULL),,--quick) || exit 1; done

bench: setup
	@$(BIN)/python -m likeness.benchmarks $(NAME) $(if $(QUICK),--quick)

pictures: setup
	@$(BIN)/python tests/host/pictures.py $(NAME) $(if $(RUN),--run)

lock:
	uv pip compile --quiet --universal --no-header --no-annotate --no-emit-index-url \
		--python-version 3.11 --extra dev --extra all pyproject.toml -o requirements-dev.lock

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
