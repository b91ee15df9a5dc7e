# Everything works in .venv, which each target fills with what it needs; a target that was interrupted can simply be run again.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help report publish test times faults test-gpu numerics sanitize bench counters check headline clean

PYTHON ?= python3
PARAMS ?=
SITE ?=
SHAPES ?= 1,4096,4096;1,4096,1024;1,4096,14336;1,14336,4096
OUT ?= bench
BUDGET ?= 120

VENV := .venv
PY := $(VENV)/bin/python
GPU := $(shell nvidia-smi -L 2>/dev/null | grep -m 1 GPU)
comma := ,
# pip leaves byte-compiling to the first import, which must be allowed to keep what it compiles
unexport PYTHONDONTWRITEBYTECODE
# a file of tests, or the book with all that reads it, at a time on each of two processes, in the order of the files
IN_PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 16

report: $(VENV)/.has-report$(if $(and $(GPU),$(PARAMS)),+kernel) ## build the report; PARAMS=notebooks/params/a10g.yaml on that GPU measures it first
	@$(PY) -m tinygemm.report.build $(if $(PARAMS),-f "$(PARAMS)")

publish: $(VENV)/.has-report ## build the report of the newest run into _build/tinygemm-report.zip (.pdf, too, where Chromium is); SITE=https://... is its address
	@rm -f _build/made_from
	@TINYGEMM_SITE_URL="$(SITE)" $(PY) -m tinygemm.report.build
	@$(PY) -m tinygemm.report.publish

test: $(VENV)/.has-report+kernel+models+test ## lint, then every test that needs no GPU; the built book and its pages included
	@failed=0; \
	$(PY) -m ruff check || failed=1; \
	$(PY) -m ruff format --check || failed=1; \
	$(PY) -m pytest $(IN_PARALLEL) -m "not gpu and not aot" || failed=1; \
	$(PY) -m pytest -m aot || failed=1; \
	exit $$failed

times: $(VENV)/.has-report+kernel+models+test ## print what builds and tests take on this machine
	@$(PY) tests/times.py

faults: $(VENV)/.has-report+kernel+models+test ## plant known faults one by one, each of which a test must see; NAME=words chooses some
	@$(PY) tests/planted_faults.py $(NAME)

test-gpu: $(VENV)/.has-report+kernel+models+test ## the same kernels on this machine's GPU
	@$(PY) -m pytest -m gpu

numerics: $(VENV)/.has-report+kernel+models+test ## random products on this machine's GPU for BUDGET seconds, against float64 with a bound on the error
	@$(PY) tests/numerics.py --seconds $(BUDGET)

sanitize: $(VENV)/.has-report+kernel+models+test ## NVIDIA's compute-sanitizer over the small GPU tests: memcheck, racecheck, initcheck, synccheck
	@$(PY) tests/sanitize.py

bench: $(VENV)/.has-report+kernel ## time SHAPES on this machine's GPU: a CSV and the two decode plots in OUT
	@mkdir -p "$(OUT)"
	@$(PY) -m tinygemm.cli bench --shape_list "$(SHAPES)" --csv "$(OUT)/bench.csv"
	@$(PY) -m tinygemm.cli plot decode --csv "$(OUT)/bench.csv" --out_dir "$(OUT)"

counters: $(VENV)/.has-report+kernel ## profile FP16 and INT4 at SHAPES with Nsight Compute: CSVs in OUT
	@mkdir -p "$(OUT)"
	@$(PY) -m tinygemm.cli counters --shape_list "$(SHAPES)" --out_dir "$(OUT)"

check: $(VENV)/.has-report+kernel+models+test ## lint, and the tests that need neither a built book nor a browser
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m pytest $(IN_PARALLEL) -m "not gpu and not aot and not book and not browser"

headline: $(VENV)/.has-report ## write the README's figure and findings again, from the newest recorded run
	@$(PY) -m tinygemm.report.build --headline

clean: ## remove what was built; the environment and the recorded runs stay
	@rm -rf _build book/executed

# The lock holds exact versions, so an environment that matches it is made once: the stamp is written when pip has finished.
$(VENV)/.has-%: pyproject.toml requirements.lock.txt | $(VENV)/.created
	@echo "installing tinygemm[$(subst +,$(comma),$*)] into $(VENV)"
	@$(PY) -m pip install --no-compile --quiet --disable-pip-version-check --constraint requirements.lock.txt --editable ".[$(subst +,$(comma),$*)]"
	@touch $@

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed; this is {sys.version.split()[0]} (make PYTHON=python3.12 ...)")'
	@$(PYTHON) -m venv $(VENV)
	@touch $@
