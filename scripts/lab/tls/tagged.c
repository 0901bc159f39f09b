// SPDX-License-Identifier: Apache-2.0
//
// tagged.so, preloaded: all pointers of malloc have a tag in their top byte, as Android's allocator gives them on arm64
// (https://source.android.com/docs/security/test/tagged-pointers), and the kernel is asked to take them in system calls
// (Linux Documentation/arch/arm64/tagged-address-abi.rst).
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);
void __libc_free(void *p);

#define TAG ((uintptr_t)0xb4 << 56)

// Before the constructor nothing is tagged: the dynamic linker's own memory must not be.
static int on;

static void *tag(void *p)
{
	return p && on ? (void *)((uintptr_t)p | TAG) : p;
}

static void *untag(void *p)
{
	return (void *)((uintptr_t)p & ~((uintptr_t)0xff << 56));
}

void *malloc(size_t size)
{
	return tag(__libc_malloc(size));
}

void *calloc(size_t n, size_t size)
{
	return tag(__libc_calloc(n, size));
}

void *realloc(void *p, size_t size)
{
	return tag(__libc_realloc(untag(p), size));
}

void free(void *p)
{
	__libc_free(untag(p));
}

__attribute__((constructor)) static void start(void)
{
	if (prctl(PR_SET_TAGGED_ADDR_CTRL, PR_TAGGED_ADDR_ENABLE, 0, 0, 0)) {
		perror("PR_SET_TAGGED_ADDR_CTRL");
		_exit(1);
	}
	on = 1;
}
