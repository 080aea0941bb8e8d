# `make demo` and `make test` each do all of their own set-up.
PYTHON ?= python3
VENV := .venv
RUN := PYTHONPATH=project PYTHONDONTWRITEBYTECODE=1 $(VENV)/bin/python
DEMO := demo_run
DIR ?= $(DEMO)/output/tensorboard
SURVIVAL := survival_run

# What pytest says of containers; in the order of their cost: a wrong mount before a whole job.
CONTAINER_TESTS := $(addprefix tests/container/test_,image.py mounts.py jobs.py emitted_compose.py)

.PHONY: help setup demo demo-intro tensorboard test test-long test-emit test-s3 test-container test-browser test-cluster survival fuzz \
  mutation lock lint format docs clean

help:
	@echo "make demo   fine-tune the embedded tiny pipeline on a new subject, on the CPU, in minutes"
	@echo "make tensorboard   TensorBoard of the demo, or of DIR=FOLDER: an output folder, or one that holds several"
	@echo "make test   all tests but the long forms"
	@echo "make test-long   the long forms: dozens of kills, thousands of mutated files"
	@echo "make test-emit   emitted jobs, read by SkyPilot, Kubeflow's models, kubectl and podman-compose"
	@echo "make test-s3     uploads to S3: s3fs against moto's server"
	@echo "make test-container   builds the image and runs it; on Debian as root this installs podman first"
	@echo "make test-browser   report.html in headless Chromium; on Debian as root this installs it first"
	@echo "make test-cluster   runs \`emit slurm\` under a real SLURM, and faults between two nodes; on Debian as root this installs SLURM first"
	@echo "make survival   ends a job in every phase by every cause, and writes docs/survival.md; half an hour"
	@echo "make fuzz   new contents of every file that is read of others, for FUZZ_SECONDS=120"
	@echo "make mutation   how many small faults in the pure modules the tests notice; half an hour"
	@echo "make lint   ruff, mypy, shellcheck, hadolint"
	@echo "make lock   pins with hashes for the images, after a pin in docker/requirements*.txt changed"
	@echo "make docs   regenerate the tables of the documents and the comments of env/"

setup:
	@$(PYTHON) docker/setup_venv.py --venv $(VENV)

demo: demo-intro setup
	@rm -rf $(DEMO)
	@$(RUN) -m sddemo $(DEMO)
	@MODEL_DIR=$(CURDIR)/$(DEMO)/model DATASET_DIR=$(CURDIR)/$(DEMO)/dataset OUTPUT_DIR=$(CURDIR)/$(DEMO)/output \
	  ENV_FILE=$(CURDIR)/env/demo.env bash train.sh
	@echo "What it learned, before and after, is in this image:"
	@echo "$(CURDIR)/$(DEMO)/output/samples/before_after.png"

demo-intro:
	@echo "This fine-tunes a tiny Stable Diffusion on six images of a new subject, in two processes on the CPU:"
	@echo "  1. installs pinned packages into $(VENV), unless they are there (about 1.5 GB; minutes, by the network)"
	@echo "  2. writes the model and the images to $(DEMO), and removes what an earlier demo left there"
	@echo "  3. generates 48 class images, trains 250 steps, and generates samples before and after: about 2 minutes on 2 cores"
	@echo "Nothing is downloaded after step 1, and nothing is opened."

tensorboard: setup
	@$(VENV)/bin/tensorboard --logdir=$(DIR)

test: setup
	@$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not long and not cluster" --ignore=tests/container --ignore=tests/targets --ignore=tests/browser

# In an environment of its own, since SkyPilot brings dozens of packages that nothing else needs.
test-emit: setup
	@PYTHON=$(PYTHON) bash tests/targets/set_up.sh
	@$(VENV)/bin/python -m pytest --durations=3 tests/targets

# In an environment of its own, for the same reason.
test-s3: setup
	@PYTHON=$(PYTHON) bash tests/support/environment.sh s3
	@$(VENV)/bin/python -m pytest --durations=3 tests/s3

test-container: setup
	@bash tests/container/set_up.sh
	@PYTHON=$(PYTHON) bash tests/targets/set_up.sh
	@$(VENV)/bin/python -m pytest --durations=5 $(CONTAINER_TESTS)

test-browser: setup
	@bash tests/browser/set_up.sh
	@$(VENV)/bin/python -m pip install --quiet --requirement docker/requirements-browser.txt
	@$(VENV)/bin/python -m pytest --durations=3 tests/browser

test-cluster: setup
	@bash tests/cluster/set_up.sh
	@$(VENV)/bin/python -m pytest --durations=8 -m cluster tests/cluster

survival: setup
	@rm -rf $(SURVIVAL)
	@PYTHONPATH=project:. PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 $(VENV)/bin/python \
	  -m tests.end_to_end.induced_death $(SURVIVAL) --table docs/survival.md

fuzz: setup
	@PYTHONPATH=project:. PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 $(VENV)/bin/python -W ignore -m tests.fuzz.run

test-long: setup
	@$(VENV)/bin/python -m pytest -n 2 -m long --ignore=tests/browser

mutation: setup
	@$(VENV)/bin/python -m pip install --quiet --requirement docker/requirements-mutation.txt
	@PATH=$(CURDIR)/$(VENV)/bin:$$PATH $(VENV)/bin/python tests/mutation/run.py

lint: setup
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy -p sdjob -p sdlaunch -p sdtrain -p sddemo
	@$(VENV)/bin/mypy entrypoint.py docker/*.py
	@$(VENV)/bin/shellcheck train.sh docker/*.sh benchmarks/gpu/*.sh tests/*/set_up.sh tests/support/*.sh .ci/run
	@$(VENV)/bin/hadolint docker/Dockerfile

format: setup
	@$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

docs: setup
	@$(RUN) -m sdlaunch.generate_docs

lock: setup
	@$(VENV)/bin/python docker/lock.py

clean:
	rm -rf $(DEMO) $(SURVIVAL) .pytest_cache .mypy_cache .ruff_cache
