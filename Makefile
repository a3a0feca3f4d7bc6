# make demo    from nothing to a trained detector and its pictures, in demo/
# make test    every test
# make build   the program, target/release/odh (this fetches libtorch, once)

SHELL := /bin/bash
CARGO ?= cargo
ODH := $(CURDIR)/target/release/odh

.PHONY: all build libtorch demo holdout test clean-demo

all: build

libtorch:
	@scripts/libtorch.sh

build: libtorch
	$(CARGO) build --release --locked

test: libtorch
	$(CARGO) test --release --locked

# Pictures to train on, a small network from scratch, and what it finds on the pictures that it was not trained on.
demo: build
	@scripts/demo.sh $(ODH)

# How good the demo's detector is on 40 pictures of another seed, which no training has seen.
holdout: build
	@scripts/holdout.sh $(ODH)

clean-demo:
	rm -rf demo
