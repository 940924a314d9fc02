# make demo   run the main job            make test   run the tests
# make setup  only prepare .venv          make lint   check style       make bench   measure
# make wheel  build dist/*.whl            make clean  remove what these made
# make gpu    all that a Hopper GPU has to say, in nine minutes, into out/gpu (OUT=folder); no network needed
# make test-all    also what `make test` has a sample of
# make test-wheel  install in fresh environments, one with another torch (downloads it once, 5.5 GB)
#
# PYTHON=python3.12    another interpreter       TORCH="torch==2.14.1"   another torch than the one found
# JOBS=4                test processes
# MOELA_CUDA=ON|OFF    demand or skip the CUDA library (default: built if nvcc is found)
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q
NATIVE := setup.py CMakeLists.txt $(shell find csrc -type f)

.PHONY: setup demo test test-all test-wheel gpu lint bench wheel clean

setup: $(VENV)/.built

# A torch that the interpreter already has is used, not installed again.
$(VENV)/.packages: pyproject.toml tools/get_torch.py
	@echo "moela: preparing $(VENV); the first time this downloads torch"
	test -x $(BIN)/python || $(PYTHON) -m venv $$($(PYTHON) -c 'import torch' 2>/dev/null && echo --system-site-packages) $(VENV)
	$(BIN)/python tools/get_torch.py $(TORCH)
	$(PIP) "setuptools>=77" wheel ninja "cmake>=3.24" "pybind11>=3.0"
	@touch $@

$(VENV)/.built: $(VENV)/.packages $(NATIVE)
	$(PIP) --no-build-isolation -e ".[test,lint]"
	@touch $@

demo: setup
	$(BIN)/moela demo

test: setup
	MOELA_TEST_REQUIRE=cpu,triton $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal tests

test-all: setup
	MOELA_TEST_REQUIRE=cpu,triton $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not install" tests

test-wheel: setup
	MOELA_TEST_REQUIRE=install $(BIN)/python -m pytest -q -m install tests/install

# With the machine's own python3, which has a CUDA build of torch.
OUT ?= out/gpu
gpu:
	python3 tools/gpu.py $(OUT)

lint: setup
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

bench: setup
	$(BIN)/moela bench fp8_gemm --model deepseek-v3 --tokens 1,16,64,256 --threads 1

wheel: setup
	$(BIN)/python -m pip --disable-pip-version-check wheel -q --no-build-isolation --no-deps -w dist .
	@ls dist/*.whl

clean:
	rm -rf build dist out $(VENV) python/moela/*.so python/*.egg-info *.egg-info
