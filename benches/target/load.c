// Load on an iSCSI logical unit: one thread, CONNS sessions, DEPTH commands in flight on each. Prints one line of JSON.
//
//   load URL read|write|randread|randwrite|stripes BYTES CONNS DEPTH SECONDS [REST]
//
// Each # in the URL is a digit of the session's number: then every session has a target of its own. `stripes` is no
// measurement: it writes every other BYTES of the disk once, so that reads cross from a child to its master. After a
// measurement the sessions rest for REST seconds before they end: they only answer pings. With a DEPTH of 0 they do nothing
// but that.
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

#define BLOCK 512
#define MOST_MICROS 1000000

struct session {
    struct iscsi_context *iscsi;
    uint64_t next; // the next unit of a sequential run
};

struct slot {
    struct session *session;
    unsigned char *data;
    struct scsi_iovec into;
    double began;
};

static int lun, writes, at_random, stripes;
static uint32_t bytes;
static uint64_t units; // of `bytes`, on the disk
static uint64_t finished, in_flight, stripe;
static int stopping;
static uint32_t micros[MOST_MICROS + 1];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double cpu(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void fail(const char *what, struct iscsi_context *iscsi) {
    fprintf(stderr, "%s: %s\n", what, iscsi ? iscsi_get_error(iscsi) : strerror(errno));
    exit(1);
}

static uint64_t pick(struct session *session) {
    static uint64_t state = 0x9e3779b97f4a7c15ull;
    if (at_random) { // splitmix64
        uint64_t z = (state += 0x9e3779b97f4a7c15ull);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return (z ^ (z >> 31)) % units;
    }
    if (stripes) {
        uint64_t unit = stripe;
        stripe += 2;
        return unit;
    }
    uint64_t unit = session->next++;
    if (session->next == units) session->next = 0;
    return unit;
}

static void issue(struct slot *slot);

static void completed(struct iscsi_context *iscsi, int status, void *task, void *slot) {
    struct slot *mine = slot;
    if (status != SCSI_STATUS_GOOD) fail("a command failed", iscsi);
    double took = (now() - mine->began) * 1e6;
    micros[took < MOST_MICROS ? (int)took : MOST_MICROS]++;
    scsi_free_scsi_task(task);
    finished++;
    in_flight--;
    if (!stopping && !(stripes && stripe >= units)) issue(mine);
}

static void issue(struct slot *slot) {
    uint64_t lba = pick(slot->session) * (bytes / BLOCK);
    struct iscsi_context *iscsi = slot->session->iscsi;
    struct scsi_task *task;
    slot->began = now();
    in_flight++;
    if (writes) {
        struct iscsi_data data = {.size = bytes, .data = slot->data};
        task = scsi_cdb_write16(lba, bytes, BLOCK, 0, 0, 0, 0, 0);
        if (!task || iscsi_scsi_command_async(iscsi, lun, task, completed, &data, slot)) fail("cannot send", iscsi);
    } else {
        task = scsi_cdb_read16(lba, bytes, BLOCK, 0, 0, 0, 0, 0);
        slot->into = (struct scsi_iovec){.iov_base = slot->data, .iov_len = bytes};
        if (!task) fail("cannot read", NULL);
        scsi_task_set_iov_in(task, &slot->into, 1);
        if (iscsi_scsi_command_async(iscsi, lun, task, completed, NULL, slot)) fail("cannot send", iscsi);
    }
}

// The address with the number's digits in place of each #, from the right.
static const char *numbered(const char *pattern, int number) {
    static char address[512];
    snprintf(address, sizeof address, "%s", pattern);
    for (char *at = address + strlen(address); at-- > address;)
        if (*at == '#') *at = (char)('0' + number % 10), number /= 10;
    return address;
}

static void log_in(struct session *session, const char *address, int number) {
    char name[64];
    snprintf(name, sizeof name, "iqn.2026-11.internal.bench:load%d", number);
    session->iscsi = iscsi_create_context(name);
    struct iscsi_url *url = iscsi_parse_full_url(session->iscsi, address);
    if (!url) fail(address, session->iscsi);
    lun = url->lun;
    iscsi_set_targetname(session->iscsi, url->target);
    iscsi_set_session_type(session->iscsi, ISCSI_SESSION_NORMAL);
    iscsi_set_header_digest(session->iscsi, ISCSI_HEADER_DIGEST_NONE);
    if (iscsi_full_connect_sync(session->iscsi, url->portal, url->lun)) fail("login", session->iscsi);
    iscsi_destroy_url(url);
}

static uint64_t blocks_of(struct iscsi_context *iscsi) {
    struct scsi_task *task = iscsi_readcapacity16_sync(iscsi, lun);
    struct scsi_readcapacity16 *capacity = task ? scsi_datain_unmarshall(task) : NULL;
    if (!capacity) fail("READ CAPACITY", iscsi);
    uint64_t blocks = capacity->returned_lba + 1;
    scsi_free_scsi_task(task);
    return blocks;
}

static unsigned percentile(double share) {
    uint64_t all = 0, seen = 0;
    for (int i = 0; i <= MOST_MICROS; i++) all += micros[i];
    for (int i = 0; i <= MOST_MICROS; i++)
        if ((double)(seen += micros[i]) >= share * (double)all) return (unsigned)i;
    return MOST_MICROS;
}

// What came for the sessions, waiting for it at most this many milliseconds.
static void serve(struct session *sessions, struct pollfd *polled, int conns, int wait) {
    for (int i = 0; i < conns; i++)
        polled[i] = (struct pollfd){.fd = iscsi_get_fd(sessions[i].iscsi), .events = (short)iscsi_which_events(sessions[i].iscsi)};
    if (poll(polled, (nfds_t)conns, wait) < 0) fail("poll", NULL);
    for (int i = 0; i < conns; i++)
        if (polled[i].revents && iscsi_service(sessions[i].iscsi, polled[i].revents) < 0) fail("the session ended", sessions[i].iscsi);
}

int main(int argc, char **argv) {
    if (argc != 7 && argc != 8) {
        fprintf(stderr, "usage: load URL read|write|randread|randwrite|stripes BYTES CONNS DEPTH SECONDS [REST]\n");
        return 2;
    }
    const char *mode = argv[2];
    bytes = (uint32_t)atoi(argv[3]);
    int conns = atoi(argv[4]), depth = atoi(argv[5]);
    double seconds = atof(argv[6]), rest = argc > 7 ? atof(argv[7]) : 0;
    stripes = !strcmp(mode, "stripes");
    writes = stripes || strstr(mode, "write");
    at_random = !strncmp(mode, "rand", 4);
    struct session *sessions = calloc((size_t)conns, sizeof *sessions);
    struct pollfd *polled = calloc((size_t)conns, sizeof *polled);
    for (int i = 0; i < conns; i++) log_in(&sessions[i], numbered(argv[1], i), i);
    units = blocks_of(sessions[0].iscsi) * BLOCK / bytes;
    for (int i = 0; i < conns; i++) {
        sessions[i].next = units / (uint64_t)conns * (uint64_t)i;
        for (int d = 0; d < depth; d++) {
            struct slot *slot = calloc(1, sizeof *slot);
            slot->session = &sessions[i];
            slot->data = malloc(bytes);
            memset(slot->data, 1 + i + d, bytes);
            issue(slot);
        }
    }
    // A quarter of the time warms up: windows open, caches fill, the other side's threads start.
    double started = now() + seconds / 4, end = started + seconds, cpu_before = 0;
    uint64_t before = 0;
    int measuring = 0;
    while (in_flight || !depth) {
        double t = now();
        if (!measuring && t >= started) {
            measuring = 1;
            started = t;
            before = finished;
            cpu_before = cpu();
            memset(micros, 0, sizeof micros);
            puts("measuring");
            fflush(stdout);
        }
        if (t >= end && !stripes) break;
        serve(sessions, polled, conns, depth ? 1000 : 10);
    }
    double took = now() - started;
    printf("{\"operations\": %llu, \"seconds\": %.4f, \"p50_us\": %u, \"p99_us\": %u, \"client_cpu\": %.4f}\n",
           (unsigned long long)(finished - before), took, percentile(0.5), percentile(0.99), cpu() - cpu_before);
    fflush(stdout);
    if (stripes) {
        struct scsi_task *task = iscsi_synchronizecache16_sync(sessions[0].iscsi, lun, 0, 0, 0, 0);
        if (!task || task->status != SCSI_STATUS_GOOD) fail("SYNCHRONIZE CACHE", sessions[0].iscsi);
    }
    for (double until = now() + rest; now() < until;) {
        stopping = 1;
        serve(sessions, polled, conns, 100);
    }
    // The commands still in flight die with the connections.
    _exit(0);
}
