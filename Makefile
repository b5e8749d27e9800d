# Each target is one command, or a few in a row; what they do is documented by `--help`.
# The data live under DEMO for the demo; give SOURCE, STORE, RUN and so on for your own.

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
# What finds the vertebrae of a new study: a trained localizer where there is one, or masks.
FIND = $(if $(wildcard $(LOCALIZER)),--localizer $(LOCALIZER),--masks $(MASKS))

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint type docs bench preprocess verify train localizer evaluate predict report ci clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: .venv/installed ## make .venv with everything, pinned

.venv/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PINNED) --editable '.[pipeline,training,s3,docs,dev]'
	touch $@

demo: setup ## make a cohort, preprocess, train, score, report: all under DEMO
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

bench: setup ## run every benchmark, the quick way
	$(BIN)/pip install --quiet $(PINNED) --editable '.[bench]'
	for script in benchmarks/*.py; do $(BIN)/python $$script --quick || exit 1; done

preprocess: setup ## SOURCE of DICOM studies to STORE, on a local cluster
	$(BIN)/cspine-pipeline run $(SOURCE) $(STORE) --masks $(MASKS) --labels $(LABELS) --boxes $(BOXES)

verify: setup ## prove STORE against its records
	$(BIN)/cspine-pipeline verify $(STORE)

train: setup ## train rounds on STORE into RUN
	$(BIN)/cspine-training boost $(STORE) $(RUN) --preset $(PRESET) --recipe $(RECIPE)

localizer: setup ## train what finds vertebrae on STORE's masks into LOCALIZER
	$(BIN)/cspine-training localizer $(STORE) $(LOCALIZER) --preset $(PRESET)

evaluate: setup ## score RUN on the locked test patients of STORE
	$(BIN)/cspine-training evaluate $(RUN) $(STORE)

predict: setup ## predict every study of STORE with RUN into OUT, or one STUDY (a folder of DICOM) into ANSWER
ifdef STUDY
	$(BIN)/cspine-pipeline run $(STUDY) $(ANSWER)/store --layout scan --serial $(FIND)
	$(BIN)/cspine-training predict $(RUN) $(ANSWER)/store $(ANSWER)/predictions.csv --explain $(ANSWER)
else
	$(BIN)/cspine-training predict $(RUN) $(STORE) $(OUT)
endif

report: setup ## write the pages about STORE and RUN
	$(BIN)/cspine-pipeline report $(STORE) $(DEMO)/preprocessing.html
	$(BIN)/cspine-training report $(RUN) $(DEMO)/training.html

ci: lint type docs test ## what the continuous integration runs

clean: ## remove what make made
	rm -rf .venv $(DEMO) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
