# `make demo` runs the main commands on a drawn data set; `make test` runs the tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: help setup setup-dev demo test lint docs audit clean

help:
	@echo "make demo   install, draw a data set, train, evaluate, predict (about ten minutes on two cores)"
	@echo "make test   install the development tools and run the tests"
	@echo "make lint   ruff and mypy"
	@echo "make docs   build the documentation into docs/_build/html"
	@echo "make audit  check the installed packages for known vulnerabilities"
	@echo "make clean  remove the files of make demo"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements.txt requirements-dev.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@

setup: $(VENV)/.installed

setup-dev: $(VENV)/.installed-dev

demo: setup
	@test ! -e demo || { echo "error: demo: exists; remove it first: make clean"; exit 2; }
	$(BIN)/python dataset.py demo demo/VOCdevkit --num-images 400 --seed 0
	$(BIN)/python train.py --preset demo --data demo/VOCdevkit --run-dir demo/run
	$(BIN)/python eval.py --checkpoint demo/run/best.pth --data demo/VOCdevkit --split test --json demo/eval.json
	sed 's|.*|demo/VOCdevkit/VOC2026/JPEGImages/&.jpg|' demo/VOCdevkit/VOC2026/ImageSets/Main/test.txt > demo/test.txt
	$(BIN)/python predict.py demo/test.txt --checkpoint demo/run/best.pth --output demo/predictions --json
	@echo "look at demo/predictions, demo/run/curves.png and demo/run/val_detections.jpg"

test: setup-dev
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder tests

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup-dev
	$(BIN)/python -m sphinx -j auto -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

audit: setup
	-$(BIN)/python -m pip install --disable-pip-version-check -q pip-audit
	-$(BIN)/python -m pip_audit --progress-spinner off --timeout 15

clean:
	rm -rf demo
