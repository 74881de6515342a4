# conc.h needs no building. This file builds and runs its examples, tests and
# benchmarks; a C compiler, make and a POSIX shell are enough.
#
#   make          examples into build/examples, test programs beside them
#   make run      a task master and two task workers that share two queues, and
#                 one more that is killed in the middle of its task;
#                 TIME_SCALE=1 as slowly as the documents' programs
#   make test     every test; TESTS=name only that one, FILTER=words by title
#   make bench    the benchmarks
#   make fuzz     libFuzzer (of clang) for SECONDS=60 at each target
#   make check    the wide matrix of compilers, standards and sanitizers
#   make docs     the manual, build/conc.html, from the comments of conc.h
#   make index    the index of names in conc.h and the contents of its
#                 implementation, when there are new ones
#   make install  conc.h, conc.pc and conc.py, for gdb, into PREFIX=/usr/local,
#                 below DESTDIR=
#   make clean
#
# A configuration is picked by variables; each has its own folder in build/:
#   CC=clang  STD=c99  SANITIZE=address,undefined
#   OPT=-O0        all of it; else -O2 for conc.o and -Og for the programs that
#                  hold the implementation themselves, which then compile fast
#   DEFS="-DCONC_PORTABLE"
#   STD=c++20      compiles everything as C++ (with CXX)
#   IMPL=c++17     compiles only the implementation as C++
#   WERROR=        lets a compiler that we do not know warn

ifeq ($(origin CC),default)
CC := cc
endif
STD      ?= c11
OPT      ?=
SANITIZE ?=
DEFS     ?=
IMPL     ?=
CFLAGS   ?=
LDFLAGS  ?=
LDLIBS   ?=
WERROR   ?= -Werror
TESTS    ?=
FILTER   ?=
SEED     ?=
JOBS     ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)

# Build in parallel unless the user, or a make above this one, decided.
ifeq ($(MAKELEVEL),0)
ifeq ($(filter -j%,$(MAKEFLAGS)),)
MAKEFLAGS += -j$(JOBS)
endif
endif

# The folder's name lists what differs from the default configuration.
differs = $(if $(filter-out $(2),$(1)),$(1))
CONFIG := $(call differs,$(CC),cc) $(call differs,$(STD),c11) \
          $(OPT) $(SANITIZE) $(DEFS) \
          $(if $(IMPL),impl-$(IMPL)) $(CFLAGS)
CONFIG := $(shell printf '%s' '$(strip $(CONFIG))' | \
            sed 's/-D//g; s/[^A-Za-z0-9+_]\{1,\}/-/g; s/^-//')
B      := build/$(if $(CONFIG),$(CONFIG),default)
# The default configuration's examples have a short, fixed place.
EX     := $(if $(CONFIG),$(B),build)/examples

# Without the one warning that takes gcc more time than all the others, which
# tests/compile.sh looks for.
WARN  := $(shell cat tests/warnings) -Wno-misleading-indentation
CWARN := $(WARN) -Wstrict-prototypes
SAN   := $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all \
           -fno-omit-frame-pointer)
# tcc cannot tell what a program is made of.
DEPENDS := $(if $(filter tcc,$(CC)),,-MMD -MP)
LIGHT  = $(or $(OPT),-Og) -g1
BASE   = $(or $(WHOLE),$(or $(OPT),-O2) -g) -pthread $(SAN) $(DEFS) $(CFLAGS) \
           $(WERROR) $(DEPENDS)

ifneq ($(filter c++% gnu++%,$(STD)),)
# In C {0} makes a ready struct, and the text of a literal is not const.
COMPILE = $(CXX) -x c++ -std=$(STD) $(WARN) -Wno-missing-field-initializers \
            -Wno-cast-qual $(BASE)
LINK    = $(CXX) -pthread $(SAN) $(LDFLAGS)
else
COMPILE = $(CC) -std=$(STD) $(CWARN) $(BASE)
LINK    = $(if $(IMPL),$(CXX),$(CC)) -pthread $(SAN) $(LDFLAGS)
endif
COMPILE_IMPL = $(if $(IMPL),$(CXX) -x c++ -std=$(IMPL) $(WARN) $(BASE),\
                 $(COMPILE))

# Programs. Files that hold the implementation themselves (examples, and tests
# that look inside) must not be linked with the shared conc.o.
test_c    := $(filter-out tests/conc.c,$(wildcard tests/*.c))
shim_c    := tests/interop/shim.c tests/interop/powercut.c
part_c    := $(filter-out $(shim_c),$(test_c) $(wildcard tests/interop/*.c))
example_c := $(wildcard examples/*.c)
whole_c   := $(shell grep -l -e '^\# *define  *CONC_IMPLEMENTATION' \
               -e '^\# *include "inside.h"' $(part_c))
linked_c  := $(filter-out $(whole_c),$(part_c))

test_bin    := $(test_c:tests/%.c=$(B)/%)
linked_bin  := $(linked_c:tests/%.c=$(B)/%)
whole_bin   := $(whole_c:tests/%.c=$(B)/%)
example_bin := $(example_c:examples/%.c=$(EX)/%)

# Tests that are scripts: tests/NAME.sh or tests/NAME/NAME.sh.
SCRIPTS ?= harness examples compile attributes manual rooms waits vendor \
            races gdb interop bench

# A program that holds the implementation compiles only what it uses of it, for
# it is static there. conc.o has all of it, optimised more.
$(whole_bin:=.o): WHOLE = $(LIGHT)
$(example_bin:=.o): WHOLE = $(LIGHT) -DCONC_STATIC
# A library for Python: it has all, and only compiles fast if nothing is better
# for it.
$(B)/interop/shim.so: WHOLE = $(or $(OPT),-O0) -g1

all: examples programs
examples: $(example_bin)
programs: $(linked_bin) $(whole_bin) $(B)/interop/shim.so
interop: $(filter $(B)/interop/%,$(linked_bin) $(whole_bin)) \
         $(B)/interop/shim.so

$(B)/conc.o: tests/conc.c conc.h $(wildcard tests/*.h) Makefile
	@mkdir -p $(@D)
	$(COMPILE_IMPL) -c -o $@ $<

$(B)/%.o: tests/%.c conc.h $(wildcard tests/*.h tests/fuzz/*.h) Makefile
	@mkdir -p $(@D)
	$(COMPILE) -c -o $@ $<

$(linked_bin): %: %.o $(B)/conc.o
	$(LINK) -o $@ $^ $(LDLIBS)

$(whole_bin): %: %.o
	$(LINK) -o $@ $^ $(LDLIBS)

# What tests/power.c has its manager preload.
$(B)/power: | $(B)/interop/powercut.so

$(B)/interop/%.so: tests/interop/%.c conc.h $(wildcard tests/*.h) Makefile
	@mkdir -p $(@D)
	$(COMPILE) -fPIC -shared -o $@ $<

$(EX)/%.o: examples/%.c conc.h Makefile
	@mkdir -p $(@D)
	$(COMPILE) -c -o $@ $<

$(example_bin): %: %.o
	$(LINK) -o $@ $^ $(LDLIBS)

# A task is a second's sleep in the documents; here it is a fifth of that.
run: $(EX)/task_master $(EX)/task_worker
	@TIME_SCALE="$${TIME_SCALE:-0.2}" sh tests/run_demo.sh $(EX)

test: $(if $(TESTS),$(filter $(TESTS:%=$(B)/%),$(test_bin)),programs) \
      $(if $(filter examples interop,$(TESTS)),examples) \
      $(if $(filter interop,$(TESTS)),interop) \
      $(if $(filter gdb,$(TESTS)),$(B)/conc.o) \
      $(if $(TESTS),,$(if $(filter examples interop,$(SCRIPTS)),examples))
	@BUILD='$(B)' EXAMPLES='$(EX)' CC='$(CC)' CXX='$(CXX)' \
	 SANITIZE='$(SANITIZE)' FILTER='$(FILTER)' SEED='$(SEED)' \
	 JOBS='$(JOBS)' sh tests/run.sh \
	 $(or $(TESTS),$(SCRIPTS) $(test_bin:$(B)/%=%))

# Benchmarks are stand-alone like the examples; run.sh finds their peers.
bench:
	@BUILD='$(B)' CC='$(CC)' sh tests/bench/run.sh

# Targets and corpus stand in tests/fuzz; "make test" replays the corpus.
SECONDS ?= 60
fuzz:
	@BUILD='$(B)' CC='$(CC)' sh tests/fuzz/run.sh '$(SECONDS)'

check:
	@sh tests/check.sh

# The manual: one page, made of conc.h alone.
docs: build/conc.html
build/conc.html: conc.h tests/manual.awk
	@mkdir -p $(@D)
	awk -f tests/manual.awk conc.h > $@

index:
	@sh tests/manual.sh index

PREFIX     ?= /usr/local
includedir ?= $(PREFIX)/include
pkgconfig  ?= $(PREFIX)/share/pkgconfig
scripts    ?= $(PREFIX)/share/conc

# Nothing depends on the machine, hence share/.
install:
	mkdir -p '$(DESTDIR)$(includedir)' '$(DESTDIR)$(pkgconfig)' \
	  '$(DESTDIR)$(scripts)'
	cp conc.h '$(DESTDIR)$(includedir)/conc.h'
	chmod 644 '$(DESTDIR)$(includedir)/conc.h'
	cp tests/gdb/conc.py '$(DESTDIR)$(scripts)/conc.py'
	chmod 644 '$(DESTDIR)$(scripts)/conc.py'
	{ echo 'prefix=$(PREFIX)'; echo 'includedir=$(includedir)'; echo; \
	  echo 'Name: conc'; \
	  echo 'Description: Threads, coroutines, locks and queues, in one file'; \
	  sed -n 's/^#define CONC_VERSION "\(.*\)"/Version: \1/p' conc.h; \
	  echo 'Cflags: -I$${includedir} -pthread'; echo 'Libs: -pthread'; \
	} >'$(DESTDIR)$(pkgconfig)/conc.pc'
	chmod 644 '$(DESTDIR)$(pkgconfig)/conc.pc'

uninstall:
	rm -f '$(DESTDIR)$(includedir)/conc.h' \
	  '$(DESTDIR)$(pkgconfig)/conc.pc' '$(DESTDIR)$(scripts)/conc.py'

clean:
	rm -rf build

.PHONY: all examples programs interop run test bench fuzz check docs index \
        install uninstall clean
.SECONDARY:
.DELETE_ON_ERROR:
-include $(wildcard $(B)/*.d $(B)/*/*.d $(EX)/*.d)
