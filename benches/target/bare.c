// What TCP alone costs: messages of iSCSI's sizes without iSCSI. Prints one line of JSON, like load.c.
//
//   bare serve PORT [MIB]                                  one thread, one read and one write per wake-up of a connection
//   bare load ADDRESS PORT read|write BYTES CONNS DEPTH SECONDS
//
// What is sent is one buffer again and again, which the processor's cache holds; or with MIB so much memory, from its start
// to its end and again, as a disk's bytes come that no cache holds.
// A request is 48 bytes: the bytes that follow it, and the bytes that are to follow the 48 bytes of its answer.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define HEADER 48
#define MOST 4096
#define ROOM (1 << 20)

struct head {
    uint32_t follow, answer;
    unsigned char rest[HEADER - 8];
};

// One side of a connection: what is still to come of a message, and what is still to be sent.
struct peer {
    int fd;
    struct head head;
    uint32_t have;  // bytes of the header
    uint32_t skip;  // payload still to come
    uint64_t owed;  // bytes still to be sent
    uint32_t asked; // the client's: answers outstanding
};

static unsigned char scratch[ROOM];

// What is sent, and where in it the next bytes are.
static unsigned char *source = scratch;
static size_t source_length = ROOM, source_at;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void prepare(int fd) {
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(fd, F_SETFL, O_NONBLOCK);
}

// Takes in what is there; returns the messages that are whole now, -1 at the end. `owes` is told of each header.
static int take(struct peer *peer, void (*owes)(struct peer *)) {
    static unsigned char in[ROOM];
    int whole = 0;
    ssize_t got = recv(peer->fd, in, sizeof in, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN)) return -1;
    for (ssize_t at = 0; at < got;) {
        if (peer->have < HEADER) {
            uint32_t part = HEADER - peer->have;
            if (part > (uint32_t)(got - at)) part = (uint32_t)(got - at);
            memcpy((unsigned char *)&peer->head + peer->have, in + at, part);
            peer->have += part;
            at += part;
            if (peer->have < HEADER) break;
            peer->skip = peer->head.follow;
        } else {
            uint32_t part = peer->skip < (uint32_t)(got - at) ? peer->skip : (uint32_t)(got - at);
            peer->skip -= part;
            at += part;
        }
        if (peer->have == HEADER && peer->skip == 0) {
            whole++;
            owes(peer);
            peer->have = 0;
        }
    }
    return whole;
}

// Sends what is owed, as much as goes. What the bytes say does not matter but for headers, which are queued in `out`.
static void give(struct peer *peer) {
    while (peer->owed) {
        if (source_at == source_length) source_at = 0;
        size_t part = source_length - source_at < ROOM ? source_length - source_at : ROOM;
        if (peer->owed < part) part = (size_t)peer->owed;
        ssize_t sent = send(peer->fd, source + source_at, part, MSG_NOSIGNAL);
        if (sent <= 0) return;
        peer->owed -= (uint64_t)sent;
        if (source != scratch) source_at += (size_t)sent;
    }
}

static void answer(struct peer *peer) { peer->owed += HEADER + peer->head.answer; }

static void serve(uint16_t port) {
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), poller = epoll_create1(0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&any, sizeof any) || listen(listener, 128)) fail("listen");
    struct epoll_event event = {.events = EPOLLIN}, events[64];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(poller, events, 64, -1);
        for (int i = 0; i < count; i++) {
            struct peer *peer = events[i].data.ptr;
            if (!peer) {
                peer = calloc(1, sizeof *peer);
                peer->fd = accept(listener, NULL, NULL);
                prepare(peer->fd);
                event = (struct epoll_event){.events = EPOLLIN, .data.ptr = peer};
                epoll_ctl(poller, EPOLL_CTL_ADD, peer->fd, &event);
                continue;
            }
            uint64_t owed = peer->owed;
            int whole = events[i].events & EPOLLIN ? take(peer, answer) : 0;
            if (whole < 0) {
                close(peer->fd);
                free(peer);
                continue;
            }
            give(peer);
            if (!owed != !peer->owed) {
                event = (struct epoll_event){.events = EPOLLIN | (peer->owed ? EPOLLOUT : 0), .data.ptr = peer};
                epoll_ctl(poller, EPOLL_CTL_MOD, peer->fd, &event);
            }
        }
    }
}

// An answer's header carries no lengths of its own here: the client knows what it asked for.
static uint32_t wanted;

struct client {
    struct peer peer;
    unsigned char *request;
    size_t request_length, sent;
    uint64_t left; // bytes of answers still to come
    int to_ask;
};

static void load(char **argv) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    inet_pton(AF_INET, argv[0], &to.sin_addr);
    int writes = !strcmp(argv[2], "write"), conns = atoi(argv[4]), depth = atoi(argv[5]);
    uint32_t bytes = (uint32_t)atoi(argv[3]);
    double seconds = atof(argv[6]);
    struct head head = {.follow = writes ? bytes : 0, .answer = writes ? 0 : bytes};
    wanted = HEADER + head.answer;
    size_t length = HEADER + head.follow;
    unsigned char *request = calloc(1, length), *sink = malloc(ROOM);
    memcpy(request, &head, HEADER);
    struct client *clients = calloc((size_t)conns, sizeof *clients);
    struct pollfd *polled = calloc((size_t)conns, sizeof *polled);
    for (int i = 0; i < conns; i++) {
        clients[i].peer.fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(clients[i].peer.fd, (struct sockaddr *)&to, sizeof to)) fail("connect");
        prepare(clients[i].peer.fd);
        clients[i].to_ask = depth;
        clients[i].left = 0;
    }
    double started = now() + seconds / 4, end = started + seconds;
    uint64_t finished = 0, before = 0;
    int measuring = 0;
    for (;;) {
        double t = now();
        if (!measuring && t >= started) {
            measuring = 1;
            started = t;
            before = finished;
            puts("measuring");
            fflush(stdout);
        }
        if (t >= end) break;
        for (int i = 0; i < conns; i++) {
            struct client *c = &clients[i];
            while (c->to_ask) {
                ssize_t sent = send(c->peer.fd, request + c->sent, length - c->sent, MSG_NOSIGNAL);
                if (sent <= 0) break;
                if ((c->sent += (size_t)sent) == length) {
                    c->sent = 0;
                    c->to_ask--;
                    c->left += wanted;
                }
            }
            polled[i] = (struct pollfd){.fd = c->peer.fd, .events = POLLIN | (c->to_ask ? POLLOUT : 0)};
        }
        if (poll(polled, (nfds_t)conns, 1000) < 0) fail("poll");
        for (int i = 0; i < conns; i++) {
            struct client *c = &clients[i];
            if (!(polled[i].revents & POLLIN)) continue;
            ssize_t got = recv(c->peer.fd, sink, ROOM, 0);
            if (got <= 0) fail("recv");
            uint64_t whole = (c->left + wanted - 1) / wanted - (c->left - (uint64_t)got + wanted - 1) / wanted;
            c->left -= (uint64_t)got;
            finished += whole;
            c->to_ask += (int)whole;
        }
    }
    printf("{\"operations\": %llu, \"seconds\": %.4f}\n", (unsigned long long)(finished - before), now() - started);
}

int main(int argc, char **argv) {
    if (argc == 4 && !strcmp(argv[1], "serve")) {
        source_length = (size_t)atoi(argv[3]) << 20;
        source = malloc(source_length);
        if (!source_length || !source) fail("memory to send from");
        memset(source, 1, source_length); // memory that was never written is one page of zeros
    }
    if ((argc == 3 || argc == 4) && !strcmp(argv[1], "serve")) serve((uint16_t)atoi(argv[2]));
    if (argc == 9 && !strcmp(argv[1], "load")) load(argv + 2);
    else return 2;
    return 0;
}
