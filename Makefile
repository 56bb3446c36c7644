# Every target installs what it needs into .venv; a machine needs python3 >= 3.11 with its venv module, and make.
# Another interpreter: make PYTHON=/path/to/python3.12 test

VENV := .venv
RUN := $(VENV)/bin/python
PYTHON ?=
export PYTHON
# Nothing of the caller's Python may leak into the environment.
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE PYTHONUNBUFFERED VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help demo setup lint format test test-faults bench new-plugin constraints servers

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

demo: ## start a worker on the embedded broker, index a real directory tree, stop (DEMO_FOLDER=path)
	@scripts/environment demo
	@$(RUN) -m examples.textindex.demo $(DEMO_FOLDER)

setup: ## install all members (editable) and the development tools into .venv
	@scripts/environment dev

lint: ## ruff format --check, ruff check, mypy
	@scripts/environment dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

format: ## what ruff can mend by itself
	@scripts/environment dev
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

servers:
	@scripts/environment dev
	@$(RUN) scripts/servers.py redis-server rabbitmq-server

test: servers ## the whole suite except the long fault runs (ARGS="-k name -n 0": one process)
	$(RUN) -m pytest -m "not faults" -n 6 --dist loadgroup $(ARGS)

test-faults: servers ## kills, broken servers and random moments, long form
	$(RUN) -m pytest -m faults --timeout 900 $(ARGS)

bench: ## measure against Celery in the same run (ONLY=drain, RUNS=3)
	@scripts/environment bench
	@$(RUN) scripts/servers.py redis-server
	@$(RUN) -m benchmarks $(if $(ONLY),--only $(ONLY)) $(if $(RUNS),--runs $(RUNS))

new-plugin: ## a working plugin to start from (KIND=pool|broker|result|plugin|control NAME=x DEST=folder)
	@scripts/environment bare
	@$(RUN) scripts/new_plugin.py "$(KIND)" "$(NAME)" $(if $(DEST),--dest "$(DEST)")

constraints: ## pin the newest versions that work together again (needs uv)
	@scripts/environment bare
	@$(RUN) scripts/constraints.py
