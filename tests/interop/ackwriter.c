/* Writes to an iSCSI disk and remembers what was acknowledged, so that a target that is killed can be held to it.
 *
 *   ackwriter write  URL INITIATOR LOG SEED COUNT MOST DEPTH
 *   ackwriter verify URL INITIATOR LOG MASTER
 *
 * write: random writes of 1 to MOST sectors, DEPTH at once, COUNT of them (0: until the connection ends). Each write has a
 * number, its generation, one higher than any before it in LOG; every sector that it writes carries its LBA, the
 * generation, and bytes that follow from both. LOG is appended to:
 *
 *   w GENERATION LBA SECTORS     before the command is sent
 *   a GENERATION                 after its GOOD status has arrived
 *
 * No two writes in flight touch the same sector, so the order of what is acknowledged is the order on the disk.
 *
 * verify: reads the whole disk. A sector must hold, as one piece, the last acknowledged generation of its LBA or a later
 * one that was sent; a sector without an acknowledged write may also hold what the file MASTER has there.
 *
 * Exit codes: 0 done (write with COUNT 0: the connection ended), 1 the disk is wrong, 2 usage, 3 the target misbehaved.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

enum { SECTOR = 512, MAX_SECTORS = 256, MAX_DEPTH = 64, STUCK_MS = 30000 };

/* One in this many commands is a SYNCHRONIZE CACHE; one in this many writes may be large. */
enum { SYNC_EVERY = 97, LARGE_EVERY = 16, USUAL_SECTORS = 16 };

/* A part of the disk that is written again and again. The rest sees mostly first writes. */
enum { HOT_SECTORS = 16384, HOT_PERCENT = 30 };

/* More complaints than this about one disk say nothing new. */
enum { MAX_COMPLAINTS = 20 };

static const uint64_t MAGIC = 0x4b4341544f4f5252;

static _Noreturn void die(int code, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("ackwriter: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	exit(code);
}

static uint64_t next_random(uint64_t *state)
{
	/* splitmix64: any seed will do, zero too. */
	uint64_t z = *state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

/* The one content that a sector can have from this write. */
static void stamp(unsigned char *sector, uint64_t lba, uint64_t generation)
{
	uint64_t words[SECTOR / 8], state = lba * 0x100000001b3 ^ generation;

	words[0] = MAGIC;
	words[1] = lba;
	words[2] = generation;
	for (size_t i = 3; i < SECTOR / 8; i++)
		words[i] = next_random(&state);
	memcpy(sector, words, SECTOR);
}

struct write {
	uint64_t lba;
	uint32_t sectors; /* 0: no such generation */
	bool acknowledged;
};

struct history {
	struct write *writes; /* by generation; 0 is not used */
	uint64_t size, last;
};

static struct write *entry(struct history *history, uint64_t generation)
{
	if (generation >= history->size) {
		uint64_t size = generation * 2 + 4096;

		history->writes = realloc(history->writes, size * sizeof *history->writes);
		if (!history->writes)
			die(3, "out of memory");
		memset(history->writes + history->size, 0, (size - history->size) * sizeof *history->writes);
		history->size = size;
	}
	if (generation > history->last)
		history->last = generation;
	return &history->writes[generation];
}

static struct history read_log(const char *path)
{
	struct history history = { 0 };
	FILE *log = fopen(path, "r");
	char line[128];

	entry(&history, 0);
	if (!log && errno == ENOENT)
		return history;
	if (!log)
		die(2, "%s: %s", path, strerror(errno));
	while (fgets(line, sizeof line, log)) {
		uint64_t generation, lba;
		uint32_t sectors;

		if (sscanf(line, "w %" SCNu64 " %" SCNu64 " %" SCNu32, &generation, &lba, &sectors) == 3)
			*entry(&history, generation) = (struct write){ lba, sectors, false };
		else if (sscanf(line, "a %" SCNu64, &generation) == 1)
			entry(&history, generation)->acknowledged = true;
		else
			die(2, "%s: a line that this program did not write: %s", path, line);
	}
	fclose(log);
	return history;
}

struct disk {
	struct iscsi_context *iscsi;
	int lun;
	uint64_t sectors;
};

static struct disk open_disk(const char *text, const char *initiator)
{
	struct disk disk = { .iscsi = iscsi_create_context(initiator) };
	struct iscsi_url *url = iscsi_parse_full_url(disk.iscsi, text);
	struct scsi_task *task;
	struct scsi_readcapacity16 *capacity;

	if (!url)
		die(2, "%s", iscsi_get_error(disk.iscsi));
	disk.lun = url->lun;
	iscsi_set_targetname(disk.iscsi, url->target);
	iscsi_set_session_type(disk.iscsi, ISCSI_SESSION_NORMAL);
	iscsi_set_header_digest(disk.iscsi, ISCSI_HEADER_DIGEST_NONE);
	/* A target that went away is the end: writes that libiscsi sent again by itself would blur what was sent when. */
	iscsi_set_noautoreconnect(disk.iscsi, 1);
	if (iscsi_full_connect_sync(disk.iscsi, url->portal, url->lun))
		die(3, "login: %s", iscsi_get_error(disk.iscsi));
	iscsi_destroy_url(url);
	task = iscsi_readcapacity16_sync(disk.iscsi, disk.lun);
	if (!task || task->status != SCSI_STATUS_GOOD || !(capacity = scsi_datain_unmarshall(task)))
		die(3, "READ CAPACITY(16): %s", iscsi_get_error(disk.iscsi));
	if (capacity->block_length != SECTOR)
		die(3, "the disk has blocks of %u bytes", capacity->block_length);
	disk.sectors = capacity->returned_lba + 1;
	scsi_free_scsi_task(task);
	return disk;
}

struct writer;

struct slot {
	struct writer *writer;
	uint64_t generation, lba;
	uint32_t sectors; /* 0: a SYNCHRONIZE CACHE */
	unsigned char data[MAX_SECTORS * SECTOR];
};

struct writer {
	struct disk disk;
	FILE *log;
	unsigned char *busy; /* by LBA: a write is in flight */
	uint64_t random, generation, left, sent, acknowledged, busy_answers;
	uint32_t most;
	bool endless, over;
	unsigned in_flight;
};

static void start_next(struct slot *slot);

static void answered(struct iscsi_context *iscsi, int status, void *command_data, void *private_data)
{
	struct slot *slot = private_data;
	struct writer *writer = slot->writer;
	struct scsi_task *task = command_data;

	writer->in_flight--;
	if (slot->sectors)
		memset(writer->busy + slot->lba, 0, slot->sectors);
	if (status == SCSI_STATUS_GOOD) {
		if (slot->sectors) {
			fprintf(writer->log, "a %" PRIu64 "\n", slot->generation);
			writer->acknowledged++;
		}
	} else if (status == SCSI_STATUS_BUSY || status == SCSI_STATUS_TASK_SET_FULL) {
		/* Nothing was promised. */
		writer->busy_answers++;
	} else if (status == SCSI_STATUS_ERROR || status == SCSI_STATUS_CANCELLED || status == SCSI_STATUS_TIMEOUT) {
		/* The connection is gone, and with it every command. */
		writer->over = true;
	} else {
		die(3, "%s answered with status %d: %s", slot->sectors ? "WRITE(16)" : "SYNCHRONIZE CACHE(10)", status,
		    iscsi_get_error(iscsi));
	}
	scsi_free_scsi_task(task);
	if (!writer->over)
		start_next(slot);
}

/* Where to write next: a place that no write in flight touches. */
static void choose(struct writer *writer, struct slot *slot)
{
	uint64_t span;

	do {
		uint32_t most = writer->most;

		if (most > USUAL_SECTORS && next_random(&writer->random) % LARGE_EVERY)
			most = USUAL_SECTORS;
		slot->sectors = 1 + next_random(&writer->random) % most;
		span = writer->disk.sectors;
		if (span > HOT_SECTORS && next_random(&writer->random) % 100 < HOT_PERCENT)
			span = HOT_SECTORS;
		slot->lba = next_random(&writer->random) % (span - slot->sectors + 1);
	} while (memchr(writer->busy + slot->lba, 1, slot->sectors));
}

static void start_next(struct slot *slot)
{
	struct writer *writer = slot->writer;
	struct scsi_task *task;

	if (!writer->endless && writer->left == 0)
		return;
	if (next_random(&writer->random) % SYNC_EVERY == 0) {
		slot->sectors = 0;
		task = iscsi_synchronizecache10_task(writer->disk.iscsi, writer->disk.lun, 0, 0, 0, 0, answered, slot);
	} else {
		choose(writer, slot);
		slot->generation = ++writer->generation;
		for (uint32_t i = 0; i < slot->sectors; i++)
			stamp(slot->data + i * SECTOR, slot->lba + i, slot->generation);
		memset(writer->busy + slot->lba, 1, slot->sectors);
		fprintf(writer->log, "w %" PRIu64 " %" PRIu64 " %" PRIu32 "\n", slot->generation, slot->lba, slot->sectors);
		task = iscsi_write16_task(writer->disk.iscsi, writer->disk.lun, slot->lba, slot->data, slot->sectors * SECTOR,
					  SECTOR, 0, 0, 0, 0, 0, answered, slot);
		writer->left--;
		writer->sent++;
	}
	if (task)
		writer->in_flight++;
	else
		writer->over = true;
}

/* Serves the connection until every write is answered, or it ends. */
static void serve(struct writer *writer)
{
	while (!writer->over && writer->in_flight) {
		struct pollfd fd = {
			.fd = iscsi_get_fd(writer->disk.iscsi),
			.events = iscsi_which_events(writer->disk.iscsi),
		};
		int ready = poll(&fd, 1, STUCK_MS);

		if (ready == 0)
			die(3, "no answer for %d s with %u commands in flight", STUCK_MS / 1000, writer->in_flight);
		/* What arrived before the end of the connection still counts: it is read first. */
		if (fd.revents & POLLIN) {
			unsigned char byte;

			ssize_t got = recv(fd.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

			if (got == 0 || (got < 0 && errno != EAGAIN))
				return;
		} else if (fd.revents & (POLLHUP | POLLERR)) {
			return;
		}
		if (iscsi_service(writer->disk.iscsi, fd.revents & (POLLIN | POLLOUT)) < 0)
			return;
	}
}

static int write_disk(struct disk disk, const char *path, uint64_t seed, uint64_t count, uint32_t most, unsigned depth)
{
	struct history history = read_log(path);
	struct writer writer = {
		.disk = disk,
		.log = fopen(path, "a"),
		.busy = calloc(disk.sectors, 1),
		.random = seed,
		.generation = history.last,
		.left = count,
		.most = most,
		.endless = count == 0,
	};
	struct slot *slots = calloc(depth, sizeof *slots);

	free(history.writes);
	if (!writer.log || !writer.busy || !slots)
		die(3, "%s: %s", path, strerror(errno));
	for (unsigned i = 0; i < depth; i++) {
		slots[i].writer = &writer;
		start_next(&slots[i]);
	}
	serve(&writer);
	if (fclose(writer.log))
		die(3, "%s: %s", path, strerror(errno));
	printf("%" PRIu64 " sent, %" PRIu64 " acknowledged, %" PRIu64 " answered BUSY\n", writer.sent, writer.acknowledged,
	       writer.busy_answers);
	fflush(stdout);
	if (!writer.endless && (writer.over || writer.in_flight))
		die(3, "the connection ended with %u commands in flight", writer.in_flight);
	/* libiscsi would call back into slots for what is left: leave it. */
	_exit(0);
}

/* Whether this is a right content of the sector; else says why not. */
static bool right(const struct history *history, const uint64_t *acknowledged, const unsigned char *sector, uint64_t lba,
		  const unsigned char *master)
{
	unsigned char whole[SECTOR];
	const struct write *write;
	uint64_t words[3];

	memcpy(words, sector, sizeof words);
	if (words[0] != MAGIC) {
		if (acknowledged[lba])
			fprintf(stderr, "LBA %" PRIu64 ": generation %" PRIu64 " was acknowledged, and %s is there\n", lba,
				acknowledged[lba], memcmp(sector, master, SECTOR) ? "something else" : "the master's content");
		else if (memcmp(sector, master, SECTOR))
			fprintf(stderr, "LBA %" PRIu64 ": never written, and not the master's content\n", lba);
		else
			return true;
		return false;
	}
	stamp(whole, lba, words[2]);
	write = words[2] <= history->last ? &history->writes[words[2]] : NULL;
	if (words[1] != lba)
		fprintf(stderr, "LBA %" PRIu64 ": what was written to LBA %" PRIu64 " is there\n", lba, words[1]);
	else if (memcmp(sector, whole, SECTOR))
		fprintf(stderr, "LBA %" PRIu64 ": generation %" PRIu64 ", mixed with something else\n", lba, words[2]);
	else if (!write || lba < write->lba || lba - write->lba >= write->sectors)
		fprintf(stderr, "LBA %" PRIu64 ": generation %" PRIu64 ", which was not written there\n", lba, words[2]);
	else if (words[2] < acknowledged[lba])
		fprintf(stderr, "LBA %" PRIu64 ": generation %" PRIu64 ", but %" PRIu64 " was acknowledged\n", lba, words[2],
			acknowledged[lba]);
	else
		return true;
	return false;
}

static int verify_disk(struct disk disk, const char *path, const char *master_path)
{
	struct history history = read_log(path);
	uint64_t *acknowledged = calloc(disk.sectors, sizeof *acknowledged), promised = 0, complaints = 0;
	unsigned char master[MAX_SECTORS * SECTOR];
	int master_file = open(master_path, O_RDONLY);

	if (!acknowledged || master_file < 0)
		die(3, "%s: %s", master_path, strerror(errno));
	for (uint64_t generation = 1; generation <= history.last; generation++) {
		const struct write *write = &history.writes[generation];

		for (uint32_t i = 0; write->acknowledged && i < write->sectors; i++) {
			promised += !acknowledged[write->lba + i];
			acknowledged[write->lba + i] = generation;
		}
	}
	for (uint64_t lba = 0; lba < disk.sectors; lba += MAX_SECTORS) {
		uint32_t sectors = disk.sectors - lba < MAX_SECTORS ? disk.sectors - lba : MAX_SECTORS;
		struct scsi_task *task =
			iscsi_read16_sync(disk.iscsi, disk.lun, lba, sectors * SECTOR, SECTOR, 0, 0, 0, 0, 0);

		if (!task || task->status != SCSI_STATUS_GOOD || task->datain.size != (int)(sectors * SECTOR))
			die(3, "READ(16) at LBA %" PRIu64 ": %s", lba, iscsi_get_error(disk.iscsi));
		if (pread(master_file, master, sectors * SECTOR, lba * SECTOR) != (ssize_t)(sectors * SECTOR))
			die(3, "%s is shorter than the disk", master_path);
		for (uint32_t i = 0; i < sectors && complaints < MAX_COMPLAINTS; i++)
			complaints += !right(&history, acknowledged, task->datain.data + i * SECTOR, lba + i,
					     master + i * SECTOR);
		scsi_free_scsi_task(task);
	}
	if (complaints)
		die(1, "%s%" PRIu64 " sectors are wrong", complaints == MAX_COMPLAINTS ? "at least " : "", complaints);
	printf("%" PRIu64 " sectors, %" PRIu64 " of them promised\n", disk.sectors, promised);
	iscsi_logout_sync(disk.iscsi);
	return 0;
}

static uint64_t number(const char *text, uint64_t least, uint64_t most)
{
	char *end;
	uint64_t value = strtoull(text, &end, 10);

	if (!*text || *end || value < least || value > most)
		die(2, "`%s` is not between %" PRIu64 " and %" PRIu64, text, least, most);
	return value;
}

int main(int count, char **words)
{
	/* A killed target is found out by what the socket says, not by a signal. */
	signal(SIGPIPE, SIG_IGN);
	if (count == 9 && !strcmp(words[1], "write"))
		return write_disk(open_disk(words[2], words[3]), words[4], number(words[5], 0, UINT64_MAX),
				  number(words[6], 0, UINT64_MAX), number(words[7], 1, MAX_SECTORS),
				  number(words[8], 1, MAX_DEPTH));
	if (count == 6 && !strcmp(words[1], "verify"))
		return verify_disk(open_disk(words[2], words[3]), words[4], words[5]);
	die(2, "write URL INITIATOR LOG SEED COUNT MOST DEPTH | verify URL INITIATOR LOG MASTER");
}
