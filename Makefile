# make demo    from nothing to a trained detector and its pictures, in demo/
# make test    the tests
# make build   the program, target/release/odh (this fetches libtorch, once)

SHELL := /bin/bash
CARGO ?= cargo
# Where cargo puts what it builds.
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: all build libtorch demo test clean-demo

all: build

libtorch:
	@scripts/libtorch.sh

build: libtorch
	$(CARGO) build --release --locked

test: libtorch
	$(CARGO) test --release --locked

# Trains a small network from scratch on images/, in minutes, and shows what it finds.
demo: libtorch
	$(CARGO) build --release --locked --bin odh --example draw_images
	@scripts/demo.sh $(TARGET)/release

clean-demo:
	rm -rf demo
