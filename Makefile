# Each target does all its own set-up in .venv and needs nothing before it but Python.
.PHONY: compare zoo bench bench-models gpu test lint docs clean

VENV := .venv
BIN := $(VENV)/bin
BUILT := pyproject.toml CMakeLists.txt $(wildcard csrc/*)

compare: $(VENV)/lab.stamp  ## the main job on real data inside a wheel: under five minutes on two cores
	$(BIN)/groupnorm compare

zoo: $(VENV)/dev.stamp  ## converts every network of the matrix and writes docs/zoo.md: some minutes on two cores
	$(BIN)/python tools/zoo

bench: $(VENV)/lab.stamp  ## times the kernels against others and writes docs/speed.md: hours, goes on where it stopped
	$(BIN)/groupnorm bench
	$(BIN)/groupnorm bench page

bench-models: $(VENV)/dev.stamp  ## whole models before and after accelerate_: half an hour
	$(BIN)/groupnorm bench models
	$(BIN)/groupnorm bench page

gpu:  ## tests and times the Triton kernels on the GPU of this machine: at most eight minutes
	tools/gpu/start $(if $(SECONDS),--seconds $(SECONDS))

docs: $(VENV)/docs.stamp  ## the documentation, to be opened from the disk: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

test: lint browser  ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror csrc/*

.PHONY: browser
browser:  ## the report is tested in a real browser: Debian's chromium, installed where that is allowed
	tools/browser

$(VENV)/lab.stamp: $(BUILT)
	tools/environment $(VENV) lab
	touch $@

$(VENV)/docs.stamp: $(BUILT)
	tools/environment $(VENV) docs
	touch $@ $(VENV)/lab.stamp

$(VENV)/dev.stamp: $(BUILT)
	tools/environment $(VENV) dev
	touch $@ $(VENV)/docs.stamp $(VENV)/lab.stamp

clean:
	rm -rf $(VENV) dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
