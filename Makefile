# `make book` builds the book, `make test` checks it; README.md says what the rest does.

# PYTHON: the newest from 3.11 to 3.14 unless named.
PYTHON ?=
VENV ?= .venv
CHAPTER ?=
RUN ?=
PROFILE ?=
REPLACE ?=
URL ?=
OFFLINE ?=
PORT ?= 8000
ARGS ?=
IMAGES ?=
MASKS ?=

BIN := $(VENV)/bin
PAGE := _build/html/index.html
# Packages are compiled when first imported: most never are.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --no-compile
unexport PYTHONDONTWRITEBYTECODE
# Passed on as it is: neither make nor the shell runs what stands in it.
override URL := $(value URL)
export URL

.PHONY: book serve pdf install test check run own record reproduce restamp export sync \
  cards repo clean

# OFFLINE=1 puts MathJax and the runtime of the live networks into the built pages.
book: $(VENV)/book
	$(if $(OFFLINE),$(BIN)/python tools/vendor.py)
	SEGBOOK_OFFLINE=$(OFFLINE) $(BIN)/jupyter-book build . -W --keep-going -n
	@echo "The book is ready, open: file://$(CURDIR)/$(PAGE) (or: make serve)"

# The built book on http://127.0.0.1:8000/, or another PORT.
serve: $(VENV)/book
	@$(BIN)/python tools/serve.py $(PORT)

# The whole book as one PDF, printed by Chromium.
pdf: $(VENV)/developer
	@sh tools/browser.sh
	$(if $(OFFLINE),$(BIN)/python tools/vendor.py)
	SEGBOOK_OFFLINE=$(OFFLINE) $(BIN)/jupyter-book build . --builder singlehtml \
	  --path-output _build/pdf
	$(BIN)/python tools/pdf.py _build/pdf/_build/singlehtml/intro.html _build/book.pdf

# What the chapters need, PyTorch too, for Jupyter or an editor.
install: $(VENV)/reader
	@echo "All is in $(VENV): let Jupyter or your editor take $(CURDIR)/$(BIN)/python"

# ARGS go to pytest: make test ARGS="-k pages".
test: $(VENV)/developer
	@sh tools/browser.sh
	$(BIN)/python -m pytest $(ARGS)

# The slow checks that `make test` leaves out, and the workflows.
check: $(VENV)/developer
	@sh tools/browser.sh firefox-esr
	@VENV=$(VENV) sh tools/workflows.sh
	$(BIN)/python -m pytest -m check $(ARGS)

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

# A network for images of yours: looks, trains, scores, predicts, exports, into own/.
# ARGS go to it: make own IMAGES=photos MASKS=masks ARGS="--minutes 20 --out roofs".
own: $(VENV)/reader
	@test -n "$(IMAGES)" || \
	  { echo "Say which: make own IMAGES=photos MASKS=masks"; exit 2; }
	$(BIN)/python -m utils.own $(ARGS) -- "$(IMAGES)" $(if $(MASKS),"$(MASKS)")

# The live network of a chapter: graph, manifest and samples, beside its record.
export: $(VENV)/reader
	@test -n "$(CHAPTER)" || { echo "Say which: make export CHAPTER=unet"; exit 2; }
	$(BIN)/python -m utils.live $(CHAPTER)

# Carries the newer of each pair (.py, .ipynb) over to the other.
sync: $(VENV)/reader
	$(BIN)/jupytext --sync chapters/*.py

# What comes from networks.yml: the chapters' cards and the README's table.
cards: $(VENV)/book
	$(BIN)/python tools/cards.py

# The book's own address, for Colab and the links: _config.yml and first cells.
repo:
	@test -n "$$URL" || \
	  { echo "Give it: make repo URL=https://github.com/me/fork"; exit 2; }
	@python=$$(sh tools/python.sh $(PYTHON)) && "$$python" tools/repo.py "$$URL"

clean:
	rm -rf _build .vendor .pytest_cache

$(VENV)/book: requirements-book.txt
	@sh tools/install.sh $(VENV) $(PYTHON)
	@touch $@

# PyTorch is for pip alone, which takes the build that is configured for the machine.
$(VENV)/reader: requirements.txt $(VENV)/book
	$(PIP) -r $<
	@touch $@

$(VENV)/developer: requirements-dev.txt $(VENV)/reader
	$(PIP) -r $<
	@touch $@
