// SPDX-License-Identifier: Apache-2.0
//
// app.so, preloaded, makes of a program what an app may be to who looks for its libraries.
//
// With APK_FILE the code of a library is mapped from the middle of a larger file, as Android's linker maps one that is stored in
// an APK ("base.apk!/lib/arm64-v8a/libssl.so") and glibc's cannot: APK_LIBRARY is how the name of the library ends, a copy of
// it begins at APK_OFFSET. By then glibc has mapped the library; what nobody writes to of it is mapped over.
//
// With AWAIT, a FIFO, the program begins when somebody has written to that: its libraries are mapped, and it has not used them yet.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void fail(const char *what)
{
	perror(what);
	_exit(1);
}

static int ends(const char *name, const char *with)
{
	size_t n = strlen(name), m = strlen(with);

	return n >= m && !strcmp(name + n - m, with);
}

static void map_over(const char *library, const char *file, unsigned long at)
{
	struct {
		unsigned long start, end, offset;
		int prot;
	} found[8];
	unsigned int n = 0, i, code = 0;
	char line[4096], prot[5], name[2048];
	FILE *maps = fopen("/proc/self/maps", "r");
	int fd = open(file, O_RDONLY | O_CLOEXEC);

	if (!maps)
		fail("/proc/self/maps");
	if (fd < 0)
		fail(file);
	// The headers and constants, and the code behind them; what follows that has been relocated. Between them nothing of the file is
	// mapped on Android, and by glibc something that nobody may read.
	while (!code && n < sizeof(found) / sizeof(*found) && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx %4s %lx %*s %*s %2047s", &found[n].start, &found[n].end, prot, &found[n].offset, name) != 5 ||
		    !ends(name, library))
			continue;
		code = prot[2] == 'x';
		found[n++].prot = (prot[0] == 'r' ? PROT_READ : PROT_NONE) | (code ? PROT_EXEC : 0);
	}
	fclose(maps);
	if (!code) {
		fprintf(stderr, "%s: no code of it is mapped\n", library);
		_exit(1);
	}
	for (i = 0; i < n; i++) {
		int flags = MAP_PRIVATE | MAP_FIXED | (found[i].prot == PROT_NONE ? MAP_ANONYMOUS : 0);

		if (mmap((void *)found[i].start, found[i].end - found[i].start, found[i].prot, flags, fd, at + found[i].offset) == MAP_FAILED)
			fail("mmap");
	}
	close(fd);
}

// All libraries are mapped when the first constructor runs.
__attribute__((constructor)) static void start(void)
{
	const char *library = getenv("APK_LIBRARY"), *file = getenv("APK_FILE"), *at = getenv("APK_OFFSET"), *fifo = getenv("AWAIT");
	char c;
	int fd;

	if (library && file && at)
		map_over(library, file, strtoul(at, NULL, 0));
	if (!fifo)
		return;
	fd = open(fifo, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, &c, 1) != 1)
		fail(fifo);
	close(fd);
}
