# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#
# The front door; each target calls the real thing.

CARGO := PATH="$$PATH:$${CARGO_HOME:-$$HOME/.cargo}/bin" cargo

help:
	@echo 'make demo     install what is missing, build, and watch programs start for a few seconds'
	@echo 'make test     install what is missing, and run every test (KERNELS="6.1 6.12" selects)'
	@echo 'make check    formatting, lints, licences'
	@echo 'make bench    cost of an event beside libbpf-tools (TOOLS="opensnoop" selects)'
	@echo 'make bench-native   the same on the kernel of this machine, as far as it lets tools hook in'
	@echo 'make docs     write the generated parts of the documentation anew'
	@echo 'make release  the multi-call binary, small and fast: target/release/bpfscope'

demo:
	@scripts/demo

test:
	@tests/run

check:
	@scripts/setup test
	@scripts/check

bench:
	@scripts/setup test
	@bench/run $(TOOLS)

bench-native:
	@scripts/setup test
	@bench/run --native $(TOOLS)

docs:
	@scripts/docs

release:
	@scripts/setup build
	@$(CARGO) build --release --bin bpfscope

.PHONY: help demo test check bench bench-native docs release
