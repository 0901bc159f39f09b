# SPDX-License-Identifier: Apache-2.0
SHELL := bash
.SHELLFLAGS := -euc -o pipefail
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

GO      ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unreleased)
# netgo, osusergo: nothing of libc's resolver; urfave_cli_no_docs: 0.3 MB less.
TAGS    := netgo,osusergo,urfave_cli_no_docs
# Pages of 16 KiB are the largest that phones have; with ld's 64 KiB up to 60 KB of the file are padding.
LDFLAGS := -s -w -linkmode external -extldflags "-static -Wl,--gc-sections -Wl,-z,max-page-size=16384"
# What no packet passes through is compiled without inlining: 0.5 MB less on the phone.
COLD    := github.com/urfave/... github.com/therootcompany/... github.com/cilium/ebpf/btf \
           github.com/cilium/ebpf/asm github.com/cilium/ebpf/features github.com/cilium/ebpf/link github.com/cilium/ebpf/internal/... \
           text/... regexp/... encoding/json debug/... compress/... crypto/... flag net/... log/... fmt reflect internal/zstd \
           droidtap/btf/... droidtap/agent/control droidtap/agent/daemon droidtap/agent/doctor droidtap/agent/kernel droidtap/agent/hook droidtap/agent/rtnl
SUITES  ?= bookworm,bullseye,trixie,trixie-backports

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16
.PHONY: help

deps: ## install the packages that building and testing need (Debian, root)
	@scripts/deps.sh
.PHONY: deps

# --- bpf objects: one source and several variants for each probe ---

# A variant is a set of kernel features, never a version: see bpf/src/agent.h.
VARIANTS        := legacy ring
FEATURES_legacy :=
FEATURES_ring   := -DHAVE_RODATA -DHAVE_RINGBUF -DHAVE_SK_LOOKUP
SOURCES         := $(wildcard bpf/src/*.bpf.c)
OBJDIR          ?= bpf/obj
NETD            ?= scripts/netd/netd.o
# A source is built for every variant, or for those that it names here.
VARIANTS_tlskey := ring
OBJECTS         := $(foreach s,$(patsubst bpf/src/%.bpf.c,%,$(SOURCES)),$(foreach v,$(or $(VARIANTS_$(s)),$(VARIANTS)),$(OBJDIR)/$(s).$(v).o))

# The same bytes on every machine: a pinned clang, no path of this one. Lines and functions of the source (.BTF.ext) are
# half of an object, and would be parsed and told to the kernel at each start.
define variant
$(OBJDIR)/%.$(1).o: bpf/src/%.bpf.c $(wildcard bpf/src/*.h) Makefile scripts/clang.sh
	@mkdir -p $$(@D)
	P=$$$$(scripts/clang.sh); \
	$$$$P/bin/clang -target bpfel -mcpu=v2 -O2 -g -Wall -Werror -fno-ident -fdebug-compilation-dir . \
		-nostdinc -isystem $$$$P/include -isystem $$$$($$$$P/bin/clang -print-resource-dir)/include \
		$$(FEATURES_$(1)) -c $$< -o $$@; \
	$$$$P/bin/llvm-strip -g -R .BTF.ext -R .rel.BTF.ext $$@
endef
$(foreach v,$(VARIANTS),$(eval $(call variant,$(v))))
# The programs of the tests' netd: one object, in the same way.
$(eval $(subst $(OBJDIR)/%.netd.o: bpf/src/%.bpf.c,$(NETD): scripts/netd/src/netd.bpf.c,$(call variant,netd)))

bpf: $(OBJECTS) $(NETD) ## build the bpf objects that changed
check-bpf: ## rebuild the bpf objects elsewhere and compare them with the committed ones
	@rm -rf build/obj build/netd.o
	@$(MAKE) --no-print-directory OBJDIR=build/obj NETD=build/netd.o bpf
	@diff -r build/obj bpf/obj && cmp build/netd.o scripts/netd/netd.o || { echo "an object differs from what its source gives: run 'make bpf' and commit it" >&2; exit 1; }
.PHONY: bpf check-bpf

# make btf                                       facts/*.csv -> min/*.btf
# make btf FROM=vmlinux KMI=android14-6.1        the facts of a branch, from a kernel of it
# make btf FROM=/sys/kernel/btf/vmlinux OUT=FILE a file for the phone's folder, of one kernel
btf: ## make the embedded BTF from its facts; FROM=KERNEL and KMI= or OUT=: the facts of a kernel
	@$(GO) run ./btf/generate -dir btf $(if $(KMI),-kmi $(KMI)) $(if $(OUT),-out "$(OUT)") $(if $(SOURCE),-source "$(SOURCE)") $(FROM)
.PHONY: btf

# --- the agent: static, with our own libpcap, for either architecture alike ---

ENV_host  = CGO_ENABLED=1
ENV_arm64 = CGO_ENABLED=1 GOOS=linux GOARCH=arm64 CC=$$(scripts/musl.sh)
# $(call cgo,host): the environment of go for host or arm64.
cgo = P=$$(scripts/libpcap.sh $(1)); export $(ENV_$(1)) CGO_CFLAGS="-O2 -I$$P/include" CGO_LDFLAGS="-L$$P/lib"

agent: build/arm64/agent ## build the agent for phones: build/arm64/agent
agent-host: build/host/agent ## build the agent for this machine: build/host/agent
build/%/agent: FORCE
	@$(call cgo,$*); $(GO) build -tags $(TAGS) -trimpath $(COLD:%=-gcflags=%=-l) -ldflags '$(LDFLAGS) -X main.version=$(VERSION)' -o $@ ./agent
	@ls -l $@ | awk '{print $$NF ": " $$5 " bytes"}'
.PHONY: agent agent-host FORCE

module: agent ## pack the agent as a module for Magisk, KernelSU and APatch: build/droidtap-VERSION.zip
	@$(GO) run ./scripts/module -version '$(VERSION)' -at "$$(git log -1 --format=%ct 2>/dev/null || echo 60)" -o 'build/droidtap-$(VERSION).zip'
	@ls -l 'build/droidtap-$(VERSION).zip' | awk '{print $$NF ": " $$5 " bytes"}'
.PHONY: module

# --- tests: each layer can be run by itself; a skipped test is a failure ---

test: deps lint check-bpf test-pure test-host test-fuzz test-static test-lab ## pass every test that CI runs
test-pure: ## packages that need neither cgo nor root
	@CGO_ENABLED=0 scripts/gotest.sh ./agent/pclntab ./agent/pcapng ./agent/plan ./agent/plugin ./android ./btf/... ./scripts/bench/capture
test-host: ## everything on this kernel: objects, filters, hooks, captures in namespaces (root)
	@$(call cgo,host); scripts/gotest.sh -timeout 25m -tags $(TAGS) ./agent/... ./bpf/... ./android/... ./btf/... ./scripts/bench/capture ./scripts/module/... ./scripts/netd/... ./scripts/nettest/... ./scripts/tls/... ./scripts/workload/... ./scripts/wireshark/...
test-fuzz: ## each fuzz target for 4 seconds
	@timeout -k 10 900 $(MAKE) --no-print-directory FUZZTIME=4s fuzz
test-static: agent ## the phone's binary is what it must be
	@scripts/check-static.sh build/arm64/agent
test-lab: agent ## the emulated phone, on the kernels of SUITES; ALL=1: all tests on each of them
	@$(call cgo,arm64); $(GO) test -c -tags $(TAGS) -ldflags '$(LDFLAGS)' -o build/arm64/filter.test ./agent/filter
	@DROIDTAP_AGENT=$(CURDIR)/build/arm64/agent DROIDTAP_FILTER_TEST=$(CURDIR)/build/arm64/filter.test DROIDTAP_LAB_SUITES=$(SUITES) DROIDTAP_LAB_ALL=$(ALL) scripts/gotest.sh -timeout 55m ./scripts/lab/...
.PHONY: test test-pure test-host test-fuzz test-static test-lab

FUZZTIME ?= 10m
FUZZ     := filter:FuzzExpression filter:FuzzPacket probe/packet:FuzzDecode probe/packet:FuzzOwnerText afpacket:FuzzBlockPacket \
            config:FuzzParse control:FuzzParse sockdiag:FuzzParse owner:FuzzParse process:FuzzParseStart hook:FuzzParseEntry hook:FuzzParseOwner hook:FuzzStartTime rtnl:FuzzMessages rtnl:FuzzAnswers ../btf:FuzzOpen ../btf/facts:FuzzFrom \
            ../android:FuzzInterfaces ../android:FuzzParseRelease ../android:FuzzParsePackages sockdiag:FuzzParseDump apps:FuzzConcerns pcapng:FuzzWhole output/file:FuzzWholeFile \
            tlslib:FuzzFind pclntab:FuzzLookup mapped:FuzzParseMaps mapped:FuzzRecord probe/tlskey:FuzzSecret probe/tlskey:FuzzTraced probe/tlskey:FuzzFollow
fuzz: ## fuzz what parses foreign bytes, each parser for FUZZTIME (10m) (root)
	@$(call cgo,host); scripts/fuzz.sh $(FUZZTIME) $(TAGS) $(addprefix ./agent/,$(FUZZ))
.PHONY: fuzz

lint: ## gofmt, go vet, clang-format, shellcheck
	@out=$$(gofmt -l agent android bpf btf scripts); [ -z "$$out" ] || { echo "gofmt: $$out" >&2; exit 1; }
	@$(call cgo,host); $(GO) vet -tags $(TAGS) ./...
	@$$(scripts/clang.sh)/bin/clang-format --style=file:bpf/src/.clang-format --dry-run -Werror bpf/src/*.[ch] scripts/netd/src/*.c
	@git ls-files -z --cached --others --exclude-standard '*.sh' .ci/run scripts/lab/guest scripts/module/testdata | xargs -0 grep -lZE '^#!.*sh' | xargs -0 shellcheck -x
.PHONY: lint

# --- the main job ---

demo: deps agent ## boot the emulated phone, capture on it as README says, show the packets
	@scripts/lab/demo.sh build/arm64/agent
phone: agent ## the same with the phone that adb sees
	@scripts/phone.sh build/arm64/agent
.PHONY: demo phone

bench: agent-host ## what captures cost, lose and need, beside tcpdump and dumpcap: build/bench.json and README's chart (root, 5 minutes)
	@CGO_ENABLED=0 $(GO) build -o build/host/bench-capture ./scripts/bench/capture
	@build/host/bench-capture -agent build/host/agent -json build/bench.json -chart scripts/bench/capture/chart.svg $(BENCH)
bench-filter: ## what filters cost a packet, beside eCapture's way (root)
	@$(call cgo,host); $(GO) run -tags $(TAGS) ./scripts/bench/filter
bench-owner: ## what it costs a packet that its owner is found, in every way (root)
	@$(call cgo,host); $(GO) run -tags $(TAGS) ./scripts/bench/owner
bench-idle: agent-host ## wake-ups, processor time and writes of captures that capture nothing, beside tcpdump's (root)
	@scripts/bench/idle.sh build/host/agent
bench-flap: agent-host ## how soon it is back where clsact or the interface was deleted (root)
	@scripts/bench/flap.sh build/host/agent
bench-arm64: agent ## what packets cost and what is lost on emulated phones of 5.10 and 6.12, beside tcpdump's: build/bench-arm64.json
	@DROIDTAP_AGENT=$(CURDIR)/build/arm64/agent DROIDTAP_BENCH=$(CURDIR)/build/bench-arm64.json DROIDTAP_LAB_SUITES=bullseye,trixie \
		$(GO) test -count=1 -tags bench -v -timeout 30m -run '^TestBench$$' ./scripts/lab
bench-powercut: agent ## what 200 power cuts of the emulated phone cost captures
	@DROIDTAP_AGENT=$(CURDIR)/build/arm64/agent DROIDTAP_POWERCUTS=200 $(GO) test -count=1 -tags bench -v -timeout 15m -run '^TestPowerCuts$$' ./scripts/lab
bench-tls: ## what a secret costs whoever derives it, in both ways in which it is read (root)
	@$(call cgo,host); $(GO) test -tags $(TAGS) -run NONE -bench . ./agent/probe/tlskey
bench-crash: ## 200 captures killed while they write, 1,000 rotations, floods: what is lost, beside tcpdump (root)
	@$(call cgo,host); DROIDTAP_KILLS=200 DROIDTAP_ROTATIONS=1000 DROIDTAP_FLOOD=2000000 \
		$(GO) test -count=1 -timeout 20m -tags $(TAGS) -run '^(TestCrash|TestRotation|TestRotationFlood)$$' -v ./agent
.PHONY: bench bench-filter bench-owner bench-idle bench-flap bench-arm64 bench-powercut bench-tls bench-crash

clean: ## remove what was built here (the cache outside the tree stays)
	rm -rf build
.PHONY: clean
