/* DP-SGD in C on samelaw's bench: `samelaw conform --command './trainer {in} {out}' --abilities trainer-abilities.json`.
 *
 *     cc -O2 -o trainer trainer.c -lm
 *
 * It reads problem.json with a parser that knows no more JSON than the bench writes (objects, strings, numbers, null), and
 * .npy files of format 1.0. docs/bench.md describes both. The generator (splitmix64 and Box-Muller) is a toy: good enough
 * for a test, no secret.
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MOST 4 /* tables and dense parameters together */

static char *text; /* problem.json */
static const char *source, *target;

static void die(const char *what, const char *name) {
    fprintf(stderr, "%s: %s\n", what, name);
    exit(1);
}

static char *read_file(const char *name, size_t *size) {
    char path[4096];
    if ((size_t)snprintf(path, sizeof path, "%s/%s", source, name) >= sizeof path) die("path too long", name);
    FILE *file = fopen(path, "rb");
    if (!file) die("cannot open", path);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    char *bytes = malloc(*size + 1);
    if (!bytes || fread(bytes, 1, *size, file) != *size) die("cannot read", path);
    bytes[*size] = 0;
    fclose(file);
    return bytes;
}

/* The numbers of a .npy file, behind its header; `count` of them. */
static void *load(const char *name, size_t width, size_t *count) {
    size_t size;
    char *bytes = read_file(name, &size);
    if (size < 10 || memcmp(bytes, "\x93NUMPY\x01", 7) != 0) die("no .npy file of format 1.0", name);
    size_t start = 10 + (unsigned char)bytes[8] + 256 * (size_t)(unsigned char)bytes[9];
    if (start > size) die("cut short", name);
    *count = (size - start) / width;
    return memmove(bytes, bytes + start, size - start); /* to the front: aligned */
}

static void save(const char *name, const float *values, long rows, long dim) {
    char path[4096], header[128];
    if ((size_t)snprintf(path, sizeof path, "%s/release/%s.npy", target, name) >= sizeof path) die("path too long", name);
    int used = dim ? snprintf(header, sizeof header, "{'descr': '<f4', 'fortran_order': False, 'shape': (%ld, %ld), }", rows, dim)
                   : snprintf(header, sizeof header, "{'descr': '<f4', 'fortran_order': False, 'shape': (%ld,), }", rows);
    memset(header + used, ' ', sizeof header - (size_t)used);
    header[117] = '\n';
    FILE *file = fopen(path, "wb");
    if (!file) die("cannot write", path);
    const unsigned char start[] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, 118, 0};
    size_t count = (size_t)(rows * (dim ? dim : 1));
    int good = fwrite(start, 1, 10, file) == 10 && fwrite(header, 1, 118, file) == 118 &&
               fwrite(values, sizeof *values, count, file) == count;
    if (fclose(file) != 0 || !good) die("cannot write", path);
}

/* Where the value of `key` starts, in the object that starts at `object`; NULL if it has no such key. */
static char *find(char *object, const char *key) {
    int depth = 0;
    size_t length = strlen(key);
    for (char *at = object; *at; at++) {
        if (*at == '{' || *at == '[') depth++;
        if ((*at == '}' || *at == ']') && --depth == 0) return NULL;
        if (*at != '"') continue;
        char *start = ++at;
        while (*at && *at != '"') at += *at == '\\' ? 2 : 1;
        if (depth == 1 && at[1] == ':' && (size_t)(at - start) == length && !strncmp(start, key, length))
            return at + 2 + strspn(at + 2, " \n");
    }
    return NULL;
}

static char *need(char *object, const char *key) {
    char *value = find(object, key);
    if (!value) die("problem.json lacks", key);
    return value;
}

static double number(char *object, const char *key) { return strtod(need(object, key), NULL); }

static const char *string(char *value) { /* a copy of the string that starts at `value` */
    if (*value != '"') die("a string was expected at", value);
    size_t length = strcspn(value + 1, "\"");
    char *copy = calloc(length + 1, 1);
    return copy ? memcpy(copy, value + 1, length) : NULL;
}

static uint64_t state;
static double uniform(void) {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return ((double)((z ^ (z >> 31)) >> 11) + 0.5) * 0x1p-53;
}
static double normal(void) { return sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform()); }

typedef struct {
    const char *name;
    long rows, dim; /* dim 0: a dense parameter of `rows` numbers */
    size_t size;
    float *now, *readout; /* readout, or the coefficients */
    int64_t *ids, *offsets;
    double *total, *gradient;
} Part;

static Part parts[MOST];
static int count;

static void add_parts(char *object, int tables) {
    for (char *at = object + 1; *at && *at != '}';) {
        at += strspn(at, " \n,");
        if (*at != '"') break;
        if (count == MOST) die("more tables and parameters than", "4");
        Part *p = &parts[count++];
        p->name = string(at);
        char *entry = strchr(at, '{');
        p->rows = (long)number(entry, tables ? "rows" : "size");
        p->dim = tables ? (long)number(entry, "dim") : 0;
        p->now = load(string(need(entry, "initial")), sizeof(float), &p->size);
        p->total = calloc(p->size, sizeof(double));
        p->gradient = calloc(p->size, sizeof(double));
        if (!p->total || !p->gradient) die("no memory for", p->name);
        at = strchr(entry, '}') + 1;
    }
}

static void train(char *step, double clip, double sigma, double batch_size) {
    long examples = (long)number(step, "examples");
    double scale = number(step, "learning_rate") / batch_size;
    char *reads = need(step, "reads"), *dense = need(step, "dense");
    size_t ignored;
    for (int k = 0; k < count; k++) {
        Part *p = &parts[k];
        memset(p->total, 0, p->size * sizeof(double));
        if (!p->dim) {
            p->readout = load(string(need(dense, p->name)), sizeof(float), &ignored);
            continue;
        }
        char *entry = need(reads, p->name);
        p->ids = load(string(need(entry, "ids")), sizeof(int64_t), &ignored);
        p->offsets = load(string(need(entry, "offsets")), sizeof(int64_t), &ignored);
        p->readout = load(string(need(entry, "readout")), sizeof(float), &ignored);
    }
    for (long i = 0; i < examples; i++) {
        double square = 0;
        for (int k = 0; k < count; k++) {
            Part *p = &parts[k];
            memset(p->gradient, 0, p->size * sizeof(double));
            if (!p->dim)
                for (long j = 0; j < p->rows; j++) p->gradient[j] = p->readout[i * p->rows + j];
            else
                for (int64_t n = p->offsets[i]; n < p->offsets[i + 1]; n++)
                    for (long j = 0; j < p->dim; j++) p->gradient[p->ids[n] * p->dim + j] += p->readout[i * p->dim + j];
            for (size_t j = 0; j < p->size; j++) square += p->gradient[j] * p->gradient[j];
        }
        double factor = square > clip * clip ? clip / sqrt(square) : 1; /* over all parts together */
        for (int k = 0; k < count; k++)
            for (size_t j = 0; j < parts[k].size; j++) parts[k].total[j] += factor * parts[k].gradient[j];
    }
    for (int k = 0; k < count; k++) {
        for (size_t j = 0; j < parts[k].size; j++)
            parts[k].now[j] = (float)(parts[k].now[j] - scale * (parts[k].total[j] + sigma * clip * normal()));
        free(parts[k].readout);
        if (parts[k].dim) {
            free(parts[k].ids);
            free(parts[k].offsets);
        }
    }
}

int main(int argc, char **argv) {
    if (argc != 3) die("usage", "trainer IN OUT");
    source = argv[1];
    target = argv[2];
    size_t size;
    text = read_file("problem.json", &size);
    state = (uint64_t)number(text, "seed") << 20;
    double clip = number(text, "clip_norm"), sigma = number(text, "noise_multiplier");
    add_parts(need(text, "tables"), 1);
    add_parts(need(text, "dense"), 0);
    int depth = 0;
    for (char *at = need(text, "steps"); *at; at++) {
        if (*at == '{' && depth++ == 0) train(at, clip, sigma, number(text, "expected_batch_size"));
        if (*at == '}') depth--;
        if (*at == ']' && depth == 0) break;
    }
    char folder[4096];
    if ((size_t)snprintf(folder, sizeof folder, "%s/release", target) >= sizeof folder) die("path too long", target);
    if (mkdir(folder, 0777) != 0) die("cannot make", folder);
    for (int k = 0; k < count; k++) save(parts[k].name, parts[k].now, parts[k].rows, parts[k].dim);
    return 0;
}
