# Each target runs one command or a few; `--help` of the commands documents them.
# The defaults are the data of the demo; set SOURCE, STORE, RUN and so on for other data.

PYTHON ?= python3
BIN := .venv/bin
DEMO ?= demo
SOURCE ?= $(DEMO)/cohort
STORE ?= $(DEMO)/store
RUN ?= $(DEMO)/run
LOCALIZER ?= $(DEMO)/localizer.onnx
MASKS ?= $(SOURCE)/segmentations
LABELS ?= $(SOURCE)/train.csv
BOXES ?= $(SOURCE)/train_bounding_boxes.csv
OUT ?= $(DEMO)/predictions.csv
ANSWER ?= $(DEMO)/answer
JOBS ?= 2
PRESET ?= default
RECIPE ?= boost
# Pinned versions; leave it empty for the newest releases.
CONSTRAINTS ?= constraints.txt
PINNED = $(addprefix --constraint ,$(CONSTRAINTS))
# Vertebrae of a new study are located by a trained localizer if there is one, else by masks.
FIND = $(if $(wildcard $(LOCALIZER)),--localizer $(LOCALIZER),--masks $(MASKS))

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint type docs bench preprocess verify train localizer evaluate predict report ci clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: .venv/installed ## install everything into .venv, with pinned versions

.venv/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PINNED) --editable '.[pipeline,training,s3,docs,dev]'
	touch $@

demo: setup ## make a cohort, preprocess it, train, score and report, all in DEMO
	rm -rf $(DEMO)
	$(BIN)/cspine-pipeline phantom $(DEMO)/cohort --studies 200 --size 192 --slices 80
	$(MAKE) --no-print-directory preprocess verify
	$(MAKE) --no-print-directory train PRESET=demo
	$(MAKE) --no-print-directory evaluate report

test: setup ## run the tests, JOBS files at once
	$(BIN)/pytest --numprocesses $(JOBS) --dist loadfile

lint: setup ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup ## check types
	$(BIN)/mypy

docs: setup ## build the documentation site in build/docs; warnings are errors
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env --jobs auto docs build/docs

bench: setup ## run all benchmarks with --quick
	$(BIN)/pip install --quiet $(PINNED) --editable '.[bench]'
	for script in benchmarks/*.py; do $(BIN)/python $$script --quick || exit 1; done

preprocess: setup ## convert the DICOM studies of SOURCE to STORE, on a local cluster
	$(BIN)/cspine-pipeline run $(SOURCE) $(STORE) --masks $(MASKS) --labels $(LABELS) --boxes $(BOXES)

verify: setup ## verify the checksums of STORE
	$(BIN)/cspine-pipeline verify $(STORE)

train: setup ## train on STORE in rounds, and write RUN
	$(BIN)/cspine-training boost $(STORE) $(RUN) --preset $(PRESET) --recipe $(RECIPE)

localizer: setup ## train a localizer on the masks of STORE, and write LOCALIZER
	$(BIN)/cspine-training localizer $(STORE) $(LOCALIZER) --preset $(PRESET)

evaluate: setup ## score RUN on the locked test patients of STORE
	$(BIN)/cspine-training evaluate $(RUN) $(STORE)

predict: setup ## predict all studies of STORE with RUN into OUT, or one STUDY (a folder of DICOM) into ANSWER
ifdef STUDY
	$(BIN)/cspine-pipeline run $(STUDY) $(ANSWER)/store --layout scan --serial $(FIND)
	$(BIN)/cspine-training predict $(RUN) $(ANSWER)/store $(ANSWER)/predictions.csv --explain $(ANSWER)
else
	$(BIN)/cspine-training predict $(RUN) $(STORE) $(OUT)
endif

report: setup ## write the HTML reports of STORE and RUN
	$(BIN)/cspine-pipeline report $(STORE) $(DEMO)/preprocessing.html
	$(BIN)/cspine-training report $(RUN) $(DEMO)/training.html

ci: lint type docs test ## run all checks of continuous integration

clean: ## remove .venv, DEMO and build output
	rm -rf .venv $(DEMO) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
