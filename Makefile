# Two commands: `make book` builds the book, `make test` checks it.

PYTHON ?= python3.11
VENV ?= .venv
CHAPTER ?=
RUN ?=
PROFILE ?=
REPLACE ?=
URL ?=
OFFLINE ?=
ARGS ?=

BIN := $(VENV)/bin
# A new pip finds 110 packages in half the time of Python 3.11's. They are compiled
# when first imported: most never are.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --no-compile
unexport PYTHONDONTWRITEBYTECODE
PAGE := _build/html/index.html

.PHONY: book test run record reproduce restamp sync cards repo clean

# OFFLINE=1 puts MathJax and the widgets' scripts into the built pages.
book: $(VENV)/reader
	$(if $(OFFLINE),$(BIN)/python tools/vendor.py)
	SEGBOOK_OFFLINE=$(OFFLINE) $(BIN)/jupyter-book build . -W --keep-going -n
	@echo "The book is ready, open: file://$(CURDIR)/$(PAGE)"

# ARGS go to pytest: make test ARGS="-k pages".
test: $(VENV)/developer
	@sh tools/browser.sh
	$(BIN)/python -m pytest $(ARGS)

# Runs one chapter from top to bottom and writes its outputs and its stamp. REPLACE=1:
# even if the page that stands was made from real data, and this one would not be.
run: $(VENV)/reader
	@test -n "$(CHAPTER)" || { echo "Say which: make run CHAPTER=unet"; exit 2; }
	$(BIN)/python -m utils.execute $(CHAPTER) $(if $(PROFILE),--profile $(PROFILE)) \
	  $(if $(REPLACE),--replace)

# The recorded runs in results/: train one and write it; train it anew and print both
# scores; or, after a change of code that should change no number, renew its record.
record reproduce restamp: $(VENV)/reader
	@test -n "$(CHAPTER)" -a -n "$(RUN)" || \
	  { echo "Say which: make $@ CHAPTER=unet RUN=main"; exit 2; }
	$(BIN)/python -m utils.record $@ $(CHAPTER) $(RUN)

# Carries the newer of each pair (.py, .ipynb) over to the other.
sync: $(VENV)/reader
	$(BIN)/jupytext --sync chapters/*.py

# What comes from networks.yml: the chapters' cards and the README's table.
cards: $(VENV)/reader
	$(BIN)/python tools/cards.py

# The book's own address, for Colab and the links: _config.yml and first cells.
repo:
	@test -n "$(URL)" || \
	  { echo "Give it: make repo URL=https://github.com/me/fork"; exit 2; }
	@$(PYTHON) tools/repo.py "$(URL)"

clean:
	rm -rf _build .vendor .pytest_cache

$(VENV)/reader: requirements.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed: install" \
	  "Python 3.11, or name another: make $(MAKECMDGOALS) PYTHON=python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --quiet pip==26.3
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/developer: requirements-dev.txt $(VENV)/reader
	$(PIP) -r requirements-dev.txt
	@touch $@
