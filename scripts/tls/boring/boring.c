// SPDX-License-Identifier: Apache-2.0
//
// A TLS client and server with BoringSSL, for tests:
//
//	boring -s -C CERT -K KEY [-v 12|13] [-e] [-k KEYLOG] ADDRESS PORT
//	boring -c [-n CONNECTIONS] [-f FIRST] [-v 12|13] [-r] [-e] [-u] [-k KEYLOG] ADDRESS PORT
//
// The server says "ready" on standard error and serves until it is killed. The client makes connections one after the other: connection
// 7 asks for /hello-007, the server answers "answer-007". -r resumes the session of the connection before, -e sends the request
// as early data where there is one, -u updates the keys and asks once more. -k has the library log its secrets; without it there is no
// callback at all. -w has the client say "connected" behind the handshake and wait for a line on standard input: what it asks can be
// captured when the session is not.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static FILE *keylog;
static SSL_SESSION *session; // the client's last, one reference
static int version = TLS1_3_VERSION, early, resume, update, wait_first;
static int resumed, accepted; // counts

static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	ERR_print_errors_fp(stderr);
	exit(1);
}

static void log_line(const SSL *ssl, const char *line)
{
	(void)ssl;
	fprintf(keylog, "%s\n", line);
	fflush(keylog);
}

static int new_session(SSL *ssl, SSL_SESSION *s)
{
	(void)ssl;
	if (session)
		SSL_SESSION_free(session);
	session = s;
	return 1; // we keep the reference
}

// start_of returns the TLS of a socket, whose writes do not wait for one another's acknowledgement.
static SSL *start_of(SSL_CTX *ctx, int fd)
{
	SSL *ssl = SSL_new(ctx);
	int one = 1;

	if (!ssl || !SSL_set_fd(ssl, fd) || setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)))
		die("socket");
	return ssl;
}

static SSL_CTX *context(void)
{
	SSL_CTX *ctx = SSL_CTX_new(TLS_method());

	if (!ctx || !SSL_CTX_set_min_proto_version(ctx, version) || !SSL_CTX_set_max_proto_version(ctx, version))
		die("context");
	if (keylog)
		SSL_CTX_set_keylog_callback(ctx, log_line);
	SSL_CTX_set_early_data_enabled(ctx, early);
	return ctx;
}

// read_until reads until the text has a part and an end; 0 where the connection ends instead.
static int read_until(SSL *ssl, char *text, int size, const char *part, const char *end)
{
	int have = 0;

	while (have < size - 1) {
		int n = SSL_read(ssl, text + have, size - 1 - have);

		if (n <= 0)
			return 0;
		have += n;
		text[have] = 0;
		if (strstr(text, part) && have >= (int)strlen(end) && !strcmp(text + have - strlen(end), end))
			return 1;
	}
	die("a text that is too long");
	return 0;
}

static void say(SSL *ssl, const char *text)
{
	if (SSL_write(ssl, text, strlen(text)) != (int)strlen(text))
		die("write");
}

static void answer(SSL *ssl)
{
	char text[1024], reply[256], name[64];

	if (SSL_accept(ssl) != 1) {
		ERR_print_errors_fp(stderr);
		return;
	}
	while (read_until(ssl, text, sizeof(text), "GET ", "\r\n\r\n")) {
		if (sscanf(text, "GET /hello-%63s", name) != 1)
			die("no request");
		snprintf(reply, sizeof(reply), "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n\r\nanswer-%s\n",
			 strlen(name) + 8, name);
		say(ssl, reply);
	}
	SSL_shutdown(ssl);
}

static void serve(struct sockaddr *to, socklen_t size, const char *cert, const char *key)
{
	SSL_CTX *ctx = context();
	int one = 1, l = socket(to->sa_family, SOCK_STREAM, 0);

	if (SSL_CTX_use_certificate_file(ctx, cert, SSL_FILETYPE_PEM) != 1 || SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) != 1)
		die("certificate");
	setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(l, to, size) || listen(l, 128))
		die("listen");
	fprintf(stderr, "ready\n");
	for (;;) {
		int fd = accept(l, NULL, NULL);
		SSL *ssl;

		if (fd < 0)
			die("accept");
		ssl = start_of(ctx, fd);
		answer(ssl);
		SSL_free(ssl);
		close(fd);
	}
}

static void ask(SSL *ssl, const char *name)
{
	char text[1024];

	snprintf(text, sizeof(text), "GET /hello-%s HTTP/1.1\r\nHost: test\r\n\r\n", name);
	say(ssl, text);
	if (!read_until(ssl, text, sizeof(text), "answer-", "\n"))
		die("no answer");
}

static void connect_once(SSL_CTX *ctx, struct sockaddr *to, socklen_t size, int n)
{
	char name[64];
	int fd = socket(to->sa_family, SOCK_STREAM, 0);
	SSL *ssl;

	if (fd < 0 || connect(fd, to, size))
		die("connect");
	ssl = start_of(ctx, fd);
	if (resume && session)
		SSL_set_session(ssl, session);
	if (SSL_connect(ssl) != 1)
		die("handshake");
	if (wait_first) {
		fprintf(stderr, "connected\n");
		if (read(0, name, 1) != 1)
			die("wait");
	}
	snprintf(name, sizeof(name), "%03d", n);
	ask(ssl, name);
	if (update) {
		if (!SSL_key_update(ssl, SSL_KEY_UPDATE_REQUESTED))
			die("update of the keys");
		snprintf(name, sizeof(name), "%03d-updated", n);
		ask(ssl, name);
	}
	resumed += SSL_session_reused(ssl);
	accepted += SSL_early_data_accepted(ssl);
	SSL_shutdown(ssl);
	SSL_free(ssl);
	close(fd);
}

int main(int argc, char **argv)
{
	struct sockaddr_in6 six = {.sin6_family = AF_INET6};
	struct sockaddr_in four = {.sin_family = AF_INET};
	struct sockaddr *to = (void *)&four;
	const char *cert = NULL, *key = NULL;
	int o, server = 0, connections = 1, first = 0;
	socklen_t size = sizeof(four);
	SSL_CTX *ctx;

	while ((o = getopt(argc, argv, "scC:K:v:n:f:k:reuw")) != -1)
		switch (o) {
		case 's': server = 1; break;
		case 'c': server = 0; break;
		case 'C': cert = optarg; break;
		case 'K': key = optarg; break;
		case 'v': version = atoi(optarg) == 12 ? TLS1_2_VERSION : TLS1_3_VERSION; break;
		case 'n': connections = atoi(optarg); break;
		case 'f': first = atoi(optarg); break;
		case 'r': resume = 1; break;
		case 'e': early = resume = 1; break;
		case 'u': update = 1; break;
		case 'w': wait_first = 1; break;
		case 'k':
			keylog = fopen(optarg, "a");
			if (!keylog)
				die(optarg);
			break;
		default: return 2;
		}
	if (argc - optind != 2)
		return 2;
	signal(SIGPIPE, SIG_IGN);
	four.sin_port = six.sin6_port = htons(atoi(argv[optind + 1]));
	if (inet_pton(AF_INET6, argv[optind], &six.sin6_addr) == 1) {
		to = (void *)&six;
		size = sizeof(six);
	} else if (inet_pton(AF_INET, argv[optind], &four.sin_addr) != 1)
		return 2;
	if (server)
		serve(to, size, cert, key);
	ctx = context();
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
	SSL_CTX_sess_set_new_cb(ctx, new_session);
	for (int n = first; n < first + connections; n++)
		connect_once(ctx, to, size, n);
	fprintf(stderr, "%d connections, %d resumed, %d with early data\n", connections, resumed, accepted);
	return 0;
}
