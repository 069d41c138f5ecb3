/* SPDX-License-Identifier: Apache-2.0
 *
 * weightpack._core: the C API on Python buffers, through CPython's Limited API (one binary for 3.11 and later). The only file that knows Python.
 * Buffers in, status out: a wp_status is returned as a number, for weightpack/kernels/native.py to turn into an exception. The GIL is released while
 * a kernel runs.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <string.h>

#include "weightpack.h"

#define BYTES(view) ((const uint8_t *)(view).buf)

/* Asked once, when the module is loaded: CPUID traps into the hypervisor on a virtual machine, and cost half as much as decoding a chunk. */
static int runs[WP_N_ISAS];

static int isa_ok(unsigned isa) {
    if (isa < WP_N_ISAS && runs[isa]) return 1;
    PyErr_SetString(PyExc_ValueError, "this CPU can't run that ISA");
    return 0;
}

static int fits(int ok, const char *what) {
    if (!ok) PyErr_Format(PyExc_ValueError, "%s has the wrong size", what);
    return ok;
}

/* The caller keeps one workspace a thread: a fresh one for each chunk would cost more page faults than decoding costs. */
static int workspace_ok(const Py_buffer *w) { return fits((size_t)w->len >= wp_workspace_bytes() && (uintptr_t)w->buf % 8 == 0, "workspace"); }

static PyObject *workspace_bytes(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    return PyLong_FromSize_t(wp_workspace_bytes());
}

static PyObject *isas(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    PyObject *list = PyList_New(0);
    for (unsigned i = 0; list && i < WP_N_ISAS; i++) {
        PyObject *item = Py_BuildValue("(sO)", wp_isa_name(i), runs[i] ? Py_True : Py_False);
        if (!item || PyList_Append(list, item) < 0) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *crc32c(PyObject *self, PyObject *args) {
    (void)self;
    unsigned isa, crc;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "Iy*I", &isa, &data, &crc)) return NULL;
    if (isa_ok(isa)) {
        Py_BEGIN_ALLOW_THREADS
        crc = wp_crc32c(isa, crc, BYTES(data), (size_t)data.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLong(crc);
}

static PyObject *histogram(PyObject *self, PyObject *args) {
    (void)self;
    unsigned isa;
    Py_buffer symbols, counts;
    if (!PyArg_ParseTuple(args, "Iy*w*", &isa, &symbols, &counts)) return NULL;
    if (isa_ok(isa) && fits(counts.len == 256 * 4, "counts") && fits((uint64_t)symbols.len <= UINT32_MAX, "symbols")) {
        Py_BEGIN_ALLOW_THREADS
        wp_histogram(isa, BYTES(symbols), (size_t)symbols.len, counts.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&symbols);
    PyBuffer_Release(&counts);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

static PyObject *split(PyObject *self, PyObject *args) {
    (void)self;
    unsigned isa, layout;
    Py_buffer elems, symbols, widths, bits;
    size_t bits_bytes = 0;
    wp_status status = WP_ARGUMENT;
    if (!PyArg_ParseTuple(args, "IIy*w*w*w*", &isa, &layout, &elems, &symbols, &widths, &bits)) return NULL;
    const wp_layout *l = wp_layout_of(layout);
    size_t n = l ? (size_t)elems.len / l->elem_bytes : 0, n_blocks = (n + WP_BLOCK - 1) / WP_BLOCK;
    if (isa_ok(isa) && fits(l && (size_t)elems.len == n * l->elem_bytes, "elems") && fits((size_t)symbols.len >= n * l->n_planes, "symbols") &&
        fits(!l->raw_bits || ((size_t)widths.len >= n_blocks && (size_t)bits.len >= wp_bits_bound(layout, n)), "widths or bits")) {
        uint8_t *planes[WP_MAX_PLANES];
        for (unsigned p = 0; p < l->n_planes; p++) planes[p] = (uint8_t *)symbols.buf + p * n;
        Py_BEGIN_ALLOW_THREADS
        status = wp_split(isa, layout, BYTES(elems), n, planes, widths.buf, bits.buf, &bits_bytes);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&elems);
    PyBuffer_Release(&symbols);
    PyBuffer_Release(&widths);
    PyBuffer_Release(&bits);
    if (PyErr_Occurred()) return NULL;
    return Py_BuildValue("(in)", (int)status, (Py_ssize_t)bits_bytes);
}

static PyObject *bits_bound(PyObject *self, PyObject *args) {
    (void)self;
    unsigned layout;
    Py_ssize_t n;
    if (!PyArg_ParseTuple(args, "In", &layout, &n)) return NULL;
    return PyLong_FromSize_t(n < 0 ? 0 : wp_bits_bound(layout, (size_t)n));
}

static PyObject *rans_choose(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer counts;
    wp_rans_book book;
    size_t cost = 0;
    if (!PyArg_ParseTuple(args, "y*", &counts)) return NULL;
    int ok = fits(counts.len == 256 * 4, "counts");
    wp_status status = ok ? wp_rans_choose(counts.buf, &book, &cost) : WP_ARGUMENT;
    PyBuffer_Release(&counts);
    if (!ok) return NULL;
    return Py_BuildValue("(iy#n)", (int)status, (const char *)&book, (Py_ssize_t)sizeof book, (Py_ssize_t)cost);
}

static PyObject *rans_encode(PyObject *self, PyObject *args) {
    (void)self;
    unsigned isa;
    Py_buffer book, symbols, scratch, out;
    size_t n = 0;
    wp_status status = WP_ARGUMENT;
    if (!PyArg_ParseTuple(args, "Iy*y*w*w*", &isa, &book, &symbols, &scratch, &out)) return NULL;
    if (isa_ok(isa) && fits(book.len == (Py_ssize_t)sizeof(wp_rans_book), "book") &&
        fits((size_t)scratch.len >= wp_rans_scratch((size_t)symbols.len), "scratch")) {
        Py_BEGIN_ALLOW_THREADS
        status = wp_rans_encode(isa, book.buf, BYTES(symbols), (size_t)symbols.len, scratch.buf, out.buf, (size_t)out.len, &n);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&book);
    PyBuffer_Release(&symbols);
    PyBuffer_Release(&scratch);
    PyBuffer_Release(&out);
    if (PyErr_Occurred()) return NULL;
    return Py_BuildValue("(in)", (int)status, (Py_ssize_t)n);
}

static PyObject *rans_scratch(PyObject *self, PyObject *args) {
    (void)self;
    Py_ssize_t n;
    if (!PyArg_ParseTuple(args, "n", &n)) return NULL;
    return PyLong_FromSize_t(n < 0 ? 0 : wp_rans_scratch((size_t)n));
}

static PyObject *huffman_lengths(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer counts;
    uint8_t lengths[256];
    wp_status status = WP_ARGUMENT;
    if (!PyArg_ParseTuple(args, "y*", &counts)) return NULL;
    if (fits(counts.len == 1024 && (uintptr_t)counts.buf % 4 == 0, "counts")) status = wp_huffman_lengths(counts.buf, lengths);
    PyBuffer_Release(&counts);
    if (PyErr_Occurred()) return NULL;
    return Py_BuildValue("(iy#)", (int)status, status == WP_OK ? (const char *)lengths : "", (Py_ssize_t)(status == WP_OK ? 256 : 0));
}

static PyObject *huffman_encode(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer lengths, symbols, out;
    size_t n = 0;
    wp_status status = WP_ARGUMENT;
    if (!PyArg_ParseTuple(args, "y*y*w*", &lengths, &symbols, &out)) return NULL;
    if (fits(lengths.len == 256, "lengths")) {
        Py_BEGIN_ALLOW_THREADS
        status = wp_huffman_encode(BYTES(lengths), BYTES(symbols), (size_t)symbols.len, out.buf, (size_t)out.len, &n);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&lengths);
    PyBuffer_Release(&symbols);
    PyBuffer_Release(&out);
    if (PyErr_Occurred()) return NULL;
    return Py_BuildValue("(in)", (int)status, (Py_ssize_t)n);
}

/* Takes (codec, bytes) pairs apart; the views are to be released. Returns how many there are. */
static Py_ssize_t take_streams(PyObject *pairs, Py_ssize_t most, wp_stream *streams, Py_buffer *views) {
    Py_ssize_t n = PySequence_Size(pairs), n_views = 0;
    if (n < 0 || !fits(n <= most, "streams")) return 0;
    for (; n_views < n; n_views++) {
        PyObject *pair = PySequence_GetItem(pairs, n_views);
        int ok = pair && PyArg_ParseTuple(pair, "Iy*", &streams[n_views].codec, &views[n_views]);
        Py_XDECREF(pair); /* the view keeps its exporter alive */
        if (!ok) break;
        streams[n_views].data = BYTES(views[n_views]);
        streams[n_views].n_bytes = (size_t)views[n_views].len;
    }
    return n_views;
}

static PyObject *decode_streams(PyObject *self, PyObject *args) {
    (void)self;
    unsigned isa, layout, mode, chunk_number;
    PyObject *codecs;
    Py_ssize_t n_elems;
    Py_buffer out, workspace, views[WP_MAX_STREAMS];
    if (!PyArg_ParseTuple(args, "IIIOnIw*w*", &isa, &layout, &mode, &codecs, &n_elems, &chunk_number, &out, &workspace)) return NULL;
    wp_stream streams[WP_MAX_STREAMS];
    wp_status status = WP_ARGUMENT;
    uint32_t crc = 0;
    const wp_layout *l = wp_layout_of(layout);
    if (isa_ok(isa) && workspace_ok(&workspace) && fits(l && n_elems > 0 && out.len / l->elem_bytes >= n_elems, "out")) {
        Py_ssize_t n_views = take_streams(codecs, WP_MAX_STREAMS, streams, views);
        if (!PyErr_Occurred()) {
            Py_BEGIN_ALLOW_THREADS
            status = wp_decode_streams(isa, layout, mode, streams, (unsigned)n_views, (size_t)n_elems, chunk_number, workspace.buf, out.buf, &crc);
            Py_END_ALLOW_THREADS
        }
        while (n_views) PyBuffer_Release(&views[--n_views]);
    }
    PyBuffer_Release(&out);
    PyBuffer_Release(&workspace);
    if (PyErr_Occurred()) return NULL;
    return Py_BuildValue("(iI)", (int)status, crc);
}

static PyObject *decode_chunks(PyObject *self, PyObject *args) {
    (void)self;
    unsigned isa, layout, first_number;
    Py_ssize_t next, chunk_elems, n_elems;
    Py_buffer data, offsets, crcs, out, workspace;
    if (!PyArg_ParseTuple(args, "IIy*y*y*nnnIw*w*", &isa, &layout, &data, &offsets, &crcs, &next, &chunk_elems, &n_elems, &first_number, &out, &workspace))
        return NULL;
    wp_status status = WP_ARGUMENT;
    const wp_layout *l = wp_layout_of(layout);
    size_t n_chunks = (size_t)crcs.len / 4, done = (size_t)next;
    if (isa_ok(isa) && workspace_ok(&workspace) && fits(l && n_elems > 0 && out.len / l->elem_bytes >= n_elems, "out") &&
        fits(chunk_elems > 0 && next >= 0 && (size_t)n_elems <= n_chunks * (size_t)chunk_elems, "chunks") &&
        fits((size_t)offsets.len == (n_chunks + 1) * 8 && (uintptr_t)offsets.buf % 8 == 0 && (uintptr_t)crcs.buf % 4 == 0, "offsets or crcs")) {
        Py_BEGIN_ALLOW_THREADS
        status = wp_decode_chunks(isa, layout, BYTES(data), (size_t)data.len, offsets.buf, crcs.buf, n_chunks, (size_t)chunk_elems, (size_t)n_elems,
                                  first_number, workspace.buf, out.buf, &done);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&offsets);
    PyBuffer_Release(&crcs);
    PyBuffer_Release(&out);
    PyBuffer_Release(&workspace);
    if (PyErr_Occurred()) return NULL;
    return Py_BuildValue("(in)", (int)status, (Py_ssize_t)done);
}

/* The product that arguments say: x is `batch` rows of n_cols floats, and sums has room for the rows of the matrix that n_elems from element `elem` are of. */
static int product_of(unsigned type, const Py_buffer *x, Py_ssize_t n_cols, const Py_buffer *sums, uint64_t elem, Py_ssize_t n_elems, wp_product *p) {
    const Py_ssize_t row_bytes = n_cols > 0 && n_cols <= PY_SSIZE_T_MAX / 4 ? 4 * n_cols : 0;
    if (!fits(type < WP_N_FLOATS && row_bytes && x->len >= row_bytes && x->len % row_bytes == 0 && x->len / row_bytes <= WP_MAX_BATCH, "x")) return 0;
    *p = (wp_product){type, (size_t)n_cols, (size_t)(x->len / row_bytes), x->buf, sums->buf};
    if (!fits(((uintptr_t)x->buf | (uintptr_t)sums->buf) % 4 == 0 && n_elems > 0 && (uint64_t)n_elems <= UINT64_MAX - elem, "x or sums")) return 0;
    const uint64_t n_rows = (elem + (uint64_t)n_elems - 1) / p->n_cols - elem / p->n_cols + 1;
    return fits((uint64_t)sums->len / 4 / p->batch >= n_rows, "sums");
}

static PyObject *multiply_chunks(PyObject *self, PyObject *args) {
    (void)self;
    unsigned isa, layout, first_number, type;
    Py_ssize_t next, chunk_elems, n_elems, n_cols;
    Py_buffer data, offsets, crcs, x, sums, workspace;
    wp_product product;
    if (!PyArg_ParseTuple(args, "IIy*y*y*nnnIIy*nw*w*", &isa, &layout, &data, &offsets, &crcs, &next, &chunk_elems, &n_elems, &first_number, &type, &x, &n_cols,
                          &sums, &workspace))
        return NULL;
    wp_status status = WP_ARGUMENT;
    size_t n_chunks = (size_t)crcs.len / 4, done = (size_t)next;
    if (isa_ok(isa) && workspace_ok(&workspace) && fits(wp_layout_of(layout) && n_elems > 0, "elems") &&
        fits(chunk_elems > 0 && chunk_elems <= WP_MAX_CHUNK_BYTES && next >= 0 && (size_t)n_elems <= n_chunks * (size_t)chunk_elems, "chunks") &&
        fits((size_t)offsets.len == (n_chunks + 1) * 8 && (uintptr_t)offsets.buf % 8 == 0 && (uintptr_t)crcs.buf % 4 == 0, "offsets or crcs") &&
        product_of(type, &x, n_cols, &sums, (uint64_t)first_number * (uint64_t)chunk_elems, n_elems, &product)) {
        Py_BEGIN_ALLOW_THREADS
        status = wp_multiply_chunks(isa, layout, BYTES(data), (size_t)data.len, offsets.buf, crcs.buf, n_chunks, (size_t)chunk_elems, (size_t)n_elems,
                                    first_number, &product, workspace.buf, &done);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&offsets);
    PyBuffer_Release(&crcs);
    PyBuffer_Release(&x);
    PyBuffer_Release(&sums);
    PyBuffer_Release(&workspace);
    if (PyErr_Occurred()) return NULL;
    return Py_BuildValue("(in)", (int)status, (Py_ssize_t)done);
}

static PyObject *multiply(PyObject *self, PyObject *args) {
    (void)self;
    unsigned isa, type;
    Py_ssize_t elem, n_cols;
    Py_buffer elems, x, sums;
    wp_product product;
    wp_status status = WP_ARGUMENT;
    if (!PyArg_ParseTuple(args, "IIy*ny*nw*", &isa, &type, &elems, &elem, &x, &n_cols, &sums)) return NULL;
    const Py_ssize_t bytes = type == WP_FLOAT_F32 ? 4 : 2, n_elems = elems.len / bytes;
    if (isa_ok(isa) && fits(elem >= 0 && elems.len % bytes == 0, "elems") &&
        product_of(type, &x, n_cols, &sums, (uint64_t)(elem % (n_cols > 0 ? n_cols : 1)), n_elems, &product)) {
        Py_BEGIN_ALLOW_THREADS
        status = wp_multiply(isa, &product, BYTES(elems), (size_t)n_elems, (uint64_t)(elem % n_cols));
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&elems);
    PyBuffer_Release(&x);
    PyBuffer_Release(&sums);
    if (PyErr_Occurred()) return NULL;
    return PyLong_FromLong((long)status);
}

/* What the last chunk's statistics say: (repeats, [(codec, begin, n_bytes, plane_begin, plane_bytes, repeats)]); planes are in the
 * workspace. */
static PyObject *facts(const wp_encoded_chunk *chunk, const uint8_t *workspace) {
    PyObject *streams = PyList_New(0);
    for (unsigned i = 0; streams && i < chunk->n_streams; i++) {
        const wp_encoded_stream *s = &chunk->streams[i];
        PyObject *item = Py_BuildValue("(Innnnn)", s->codec, (Py_ssize_t)s->begin, (Py_ssize_t)s->n_bytes, (Py_ssize_t)(s->plane - workspace),
                                       (Py_ssize_t)s->plane_bytes, (Py_ssize_t)s->repeats);
        if (!item || PyList_Append(streams, item) < 0) Py_CLEAR(streams);
        Py_XDECREF(item);
    }
    return streams ? Py_BuildValue("(nN)", (Py_ssize_t)chunk->repeats, streams) : NULL;
}

static PyObject *encode_chunks(PyObject *self, PyObject *args) {
    (void)self;
    unsigned isa, layout, first_number;
    wp_codecs codecs;
    int stopped = 0;
    Py_ssize_t chunk_elems, repeat_share;
    Py_buffer elems, workspace, out, sizes, crcs;
    wp_encoded_chunk last = {.n_streams = 0};
    wp_status status = WP_ARGUMENT;
    size_t n_done = 0;
    if (!PyArg_ParseTuple(args, "IIy*nIIInw*w*w*w*", &isa, &layout, &elems, &chunk_elems, &first_number, &codecs.most_tables, &codecs.huffman, &repeat_share,
                          &workspace, &out, &sizes, &crcs))
        return NULL;
    const wp_layout *l = wp_layout_of(layout);
    size_t n = l ? (size_t)elems.len / l->elem_bytes : 0, size = chunk_elems < 1 ? 0 : (size_t)chunk_elems < n ? (size_t)chunk_elems : n;
    size_t n_chunks = size ? (n + size - 1) / size : 0;
    if (isa_ok(isa) && fits(size && repeat_share >= 0 && (size_t)elems.len == n * l->elem_bytes, "elems") &&
        fits((size_t)workspace.len >= wp_encode_workspace_bytes(layout, size), "workspace") &&
        fits((size_t)out.len >= (n_chunks - 1) * wp_encode_bound(layout, size) + wp_encode_bound(layout, n - (n_chunks - 1) * size), "out") &&
        fits((size_t)sizes.len >= 4 * n_chunks && (size_t)crcs.len >= 4 * n_chunks && ((uintptr_t)sizes.buf | (uintptr_t)crcs.buf) % 4 == 0, "sizes or crcs")) {
        Py_BEGIN_ALLOW_THREADS
        status = wp_encode_chunks(isa, layout, BYTES(elems), n, size, first_number, codecs, (size_t)repeat_share, workspace.buf, out.buf, sizes.buf, crcs.buf,
                                  &n_done, &stopped, &last);
        Py_END_ALLOW_THREADS
    }
    const uint8_t *workspace_begin = workspace.buf;
    PyBuffer_Release(&elems);
    PyBuffer_Release(&workspace);
    PyBuffer_Release(&out);
    PyBuffer_Release(&sizes);
    PyBuffer_Release(&crcs);
    if (PyErr_Occurred()) return NULL;
    PyObject *last_facts = stopped ? facts(&last, workspace_begin) : Py_NewRef(Py_None);
    return last_facts ? Py_BuildValue("(inN)", (int)status, (Py_ssize_t)n_done, last_facts) : NULL;
}

static PyObject *encode_workspace_bytes(PyObject *self, PyObject *args) {
    (void)self;
    unsigned layout;
    Py_ssize_t n;
    if (!PyArg_ParseTuple(args, "In", &layout, &n)) return NULL;
    return PyLong_FromSize_t(n < 0 ? 0 : wp_encode_workspace_bytes(layout, (size_t)n));
}

static PyObject *decode_difference(PyObject *self, PyObject *args) {
    (void)self;
    unsigned isa, layout, shift, chunk_number;
    PyObject *pairs;
    Py_ssize_t n_elems;
    Py_buffer frequent, base, out, workspace, views[3];
    if (!PyArg_ParseTuple(args, "IIIy*Oy*nIw*w*", &isa, &layout, &shift, &frequent, &pairs, &base, &n_elems, &chunk_number, &out, &workspace)) return NULL;
    wp_stream streams[3];
    wp_status status = WP_ARGUMENT;
    uint32_t crc = 0;
    const wp_layout *l = wp_layout_of(layout);
    if (isa_ok(isa) && workspace_ok(&workspace) && fits(frequent.len % 4 == 0 && frequent.len <= 4 * WP_MAX_FREQUENT, "frequent") &&
        fits(l && n_elems > 0 && out.len / l->elem_bytes >= n_elems && base.len / l->elem_bytes >= n_elems, "out or base")) {
        Py_ssize_t n = take_streams(pairs, 3, streams, views);
        if (!PyErr_Occurred() && fits(n == 3, "streams")) {
            Py_BEGIN_ALLOW_THREADS
            status = wp_decode_difference(isa, layout, shift, BYTES(frequent), (unsigned)frequent.len / 4, streams, BYTES(base), (size_t)n_elems, chunk_number,
                                          workspace.buf, out.buf, &crc);
            Py_END_ALLOW_THREADS
        }
        while (n) PyBuffer_Release(&views[--n]);
    }
    PyBuffer_Release(&frequent);
    PyBuffer_Release(&base);
    PyBuffer_Release(&out);
    PyBuffer_Release(&workspace);
    if (PyErr_Occurred()) return NULL;
    return Py_BuildValue("(iI)", (int)status, crc);
}

static PyObject *difference_planes(PyObject *self, PyObject *args) {
    (void)self;
    unsigned isa, layout, shift;
    Py_buffer elems, base, exponents, scales;
    wp_status status = WP_ARGUMENT;
    if (!PyArg_ParseTuple(args, "IIIy*y*w*w*", &isa, &layout, &shift, &elems, &base, &exponents, &scales)) return NULL;
    const wp_layout *l = wp_layout_of(layout);
    size_t n = l ? (size_t)elems.len / l->elem_bytes : 0;
    if (isa_ok(isa) && fits(l && (size_t)elems.len == n * l->elem_bytes && base.len == elems.len, "elems or base") &&
        fits((size_t)exponents.len >= n && (size_t)scales.len >= (n + WP_BLOCK - 1) / WP_BLOCK, "exponents or scales")) {
        Py_BEGIN_ALLOW_THREADS
        status = wp_difference_planes(isa, layout, shift, BYTES(elems), BYTES(base), n, exponents.buf, scales.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&elems);
    PyBuffer_Release(&base);
    PyBuffer_Release(&exponents);
    PyBuffer_Release(&scales);
    if (PyErr_Occurred()) return NULL;
    return PyLong_FromLong((long)status);
}

static PyObject *modular_differences(PyObject *self, PyObject *args) {
    (void)self;
    unsigned layout, shift;
    Py_buffer elems, base, differences;
    wp_status status = WP_ARGUMENT;
    if (!PyArg_ParseTuple(args, "IIy*y*w*", &layout, &shift, &elems, &base, &differences)) return NULL;
    const wp_layout *l = wp_layout_of(layout);
    size_t n = l ? (size_t)elems.len / l->elem_bytes : 0;
    if (fits(l && (size_t)elems.len == n * l->elem_bytes && base.len == elems.len, "elems or base") &&
        fits((size_t)differences.len >= 4 * n && (uintptr_t)differences.buf % 4 == 0, "differences")) {
        Py_BEGIN_ALLOW_THREADS
        status = wp_modular_differences(layout, shift, BYTES(elems), BYTES(base), n, differences.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&elems);
    PyBuffer_Release(&base);
    PyBuffer_Release(&differences);
    if (PyErr_Occurred()) return NULL;
    return PyLong_FromLong((long)status);
}

static PyObject *difference_code(PyObject *self, PyObject *args) {
    (void)self;
    unsigned isa, layout, shift, base_exponent;
    Py_buffer elems, base, rates, frequent, cells, classes, counts, extras;
    wp_status status = WP_ARGUMENT;
    size_t n_changed = 0, extras_bytes = 0;
    if (!PyArg_ParseTuple(args, "IIIy*y*y*Iy*w*w*w*w*", &isa, &layout, &shift, &elems, &base, &rates, &base_exponent, &frequent, &cells, &classes, &counts,
                          &extras))
        return NULL;
    const wp_layout *l = wp_layout_of(layout);
    size_t n = l ? (size_t)elems.len / l->elem_bytes : 0;
    if (isa_ok(isa) && fits(l && (size_t)elems.len == n * l->elem_bytes && base.len == elems.len, "elems or base") &&
        fits((size_t)rates.len >= (n + WP_BLOCK - 1) / WP_BLOCK && (size_t)cells.len >= n && (size_t)classes.len >= n, "rates, cells or classes") &&
        fits(frequent.len % 4 == 0 && frequent.len <= 4 * WP_MAX_FREQUENT, "frequent") &&
        fits(counts.len == 2 * WP_N_CELLS * WP_N_CLASSES * 4 && (uintptr_t)counts.buf % 4 == 0 && (size_t)extras.len >= wp_difference_extras_bound(n),
             "counts or extras")) {
        Py_BEGIN_ALLOW_THREADS
        status = wp_difference_code(isa, layout, shift, BYTES(elems), BYTES(base), n, BYTES(rates), base_exponent, BYTES(frequent), (unsigned)frequent.len / 4,
                                    cells.buf, classes.buf, counts.buf, extras.buf, &n_changed, &extras_bytes);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&elems);
    PyBuffer_Release(&base);
    PyBuffer_Release(&rates);
    PyBuffer_Release(&frequent);
    PyBuffer_Release(&cells);
    PyBuffer_Release(&classes);
    PyBuffer_Release(&counts);
    PyBuffer_Release(&extras);
    if (PyErr_Occurred()) return NULL;
    return Py_BuildValue("(inn)", (int)status, (Py_ssize_t)n_changed, (Py_ssize_t)extras_bytes);
}

static PyObject *conditional_books(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer counts, logs, map;
    wp_rans_book books[WP_MAX_TABLES];
    unsigned n_books = 0, n_rates = 0;
    wp_status status = WP_ARGUMENT;
    if (!PyArg_ParseTuple(args, "y*y*w*", &counts, &logs, &map)) return NULL;
    if (fits(counts.len == 4 * WP_N_CELLS * WP_N_CLASSES && (uintptr_t)counts.buf % 4 == 0, "counts") &&
        fits(logs.len == 2 * 4097 && (uintptr_t)logs.buf % 2 == 0 && map.len == WP_N_CELLS, "logs or map")) {
        Py_BEGIN_ALLOW_THREADS
        status = wp_conditional_books(counts.buf, logs.buf, books, &n_books, map.buf, &n_rates);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&counts);
    PyBuffer_Release(&logs);
    PyBuffer_Release(&map);
    if (PyErr_Occurred()) return NULL;
    return Py_BuildValue("(iy#I)", (int)status, (const char *)books, (Py_ssize_t)(n_books * sizeof(wp_rans_book)), n_rates);
}

static PyObject *conditional_encode(PyObject *self, PyObject *args) {
    (void)self;
    unsigned isa, base_exponent, n_rates;
    Py_buffer books, map, cells, symbols, scratch, out;
    size_t n = 0;
    wp_status status = WP_ARGUMENT;
    if (!PyArg_ParseTuple(args, "Iy*IIy*y*y*w*w*", &isa, &books, &base_exponent, &n_rates, &map, &cells, &symbols, &scratch, &out)) return NULL;
    if (isa_ok(isa) && fits(books.len % (Py_ssize_t)sizeof(wp_rans_book) == 0 && map.len == WP_N_CELLS && cells.len == symbols.len, "books, map or cells") &&
        fits((size_t)scratch.len >= wp_rans_scratch((size_t)symbols.len), "scratch")) {
        Py_BEGIN_ALLOW_THREADS
        status = wp_conditional_encode(isa, books.buf, (unsigned)((size_t)books.len / sizeof(wp_rans_book)), base_exponent, n_rates, BYTES(map), BYTES(cells),
                                       BYTES(symbols), (size_t)symbols.len, scratch.buf, out.buf, (size_t)out.len, &n);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&books);
    PyBuffer_Release(&map);
    PyBuffer_Release(&cells);
    PyBuffer_Release(&symbols);
    PyBuffer_Release(&scratch);
    PyBuffer_Release(&out);
    if (PyErr_Occurred()) return NULL;
    return Py_BuildValue("(in)", (int)status, (Py_ssize_t)n);
}

static PyObject *scaled_base(PyObject *self, PyObject *args) {
    (void)self;
    unsigned layout;
    Py_ssize_t n_cols, phase, n_elems;
    Py_buffer scales, signs, base;
    wp_status status = WP_ARGUMENT;
    if (!PyArg_ParseTuple(args, "Iy*nny*nw*", &layout, &scales, &n_cols, &phase, &signs, &n_elems, &base)) return NULL;
    const wp_layout *l = wp_layout_of(layout);
    if (fits(l && n_elems > 0 && base.len / l->elem_bytes >= n_elems && signs.len >= (n_elems + 7) / 8, "base or signs") &&
        fits(n_cols > 0 && phase >= 0 && scales.len % 2 == 0, "scales")) {
        Py_BEGIN_ALLOW_THREADS
        status = wp_scaled_base(layout, BYTES(scales), (size_t)scales.len / 2, (size_t)n_cols, (size_t)phase, BYTES(signs), (size_t)n_elems, base.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&scales);
    PyBuffer_Release(&signs);
    PyBuffer_Release(&base);
    if (PyErr_Occurred()) return NULL;
    return PyLong_FromLong((long)status);
}

static PyObject *scales_gain(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer upper, logs;
    Py_ssize_t n_cols;
    int gain = 0;
    if (!PyArg_ParseTuple(args, "y*ny*", &upper, &n_cols, &logs)) return NULL;
    if (fits(n_cols > 0 && upper.len % (2 * n_cols) == 0 && upper.len <= 2 * WP_MAX_SAMPLE && (uintptr_t)upper.buf % 2 == 0, "upper") &&
        fits(logs.len == WP_MAX_SAMPLE + 1, "logs"))
        gain = wp_scales_gain(upper.buf, (size_t)upper.len / 2 / (size_t)n_cols, (size_t)n_cols, BYTES(logs));
    PyBuffer_Release(&upper);
    PyBuffer_Release(&logs);
    return PyErr_Occurred() ? NULL : PyLong_FromLong(gain);
}

static PyObject *quantised_decode(PyObject *self, PyObject *args) {
    (void)self;
    unsigned isa, layout, chunk_number;
    Py_ssize_t cols, tile_rows, tile_cols, n_elems;
    Py_buffer values, scales, codes, verbatim, out;
    uint32_t crc = 0;
    wp_status status = WP_ARGUMENT;
    if (!PyArg_ParseTuple(args, "IIy*y*nnny*y*Iw*", &isa, &layout, &values, &scales, &cols, &tile_rows, &tile_cols, &codes, &verbatim, &chunk_number, &out))
        return NULL;
    const wp_layout *l = wp_layout_of(layout);
    n_elems = codes.len;
    if (isa_ok(isa) && fits(l && n_elems > 0 && out.len / l->elem_bytes >= n_elems, "out") &&
        fits(cols > 0 && tile_rows > 0 && tile_cols > 0 && values.len % 4 == 0, "tiling or values")) {
        const wp_tiling tiling = {(size_t)cols, (size_t)tile_rows, (size_t)tile_cols};
        if (fits((size_t)scales.len == 4 * wp_tiles(tiling, (size_t)n_elems), "scales")) {
            Py_BEGIN_ALLOW_THREADS
            status = wp_quantised_decode(isa, layout, BYTES(values), (size_t)values.len / 4, BYTES(scales), tiling, BYTES(codes), (size_t)n_elems,
                                         BYTES(verbatim), (size_t)verbatim.len, chunk_number, out.buf, &crc);
            Py_END_ALLOW_THREADS
        }
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&scales);
    PyBuffer_Release(&codes);
    PyBuffer_Release(&verbatim);
    PyBuffer_Release(&out);
    if (PyErr_Occurred()) return NULL;
    return Py_BuildValue("(iI)", (int)status, (unsigned)crc);
}

static PyObject *quantised_scratch(PyObject *self, PyObject *args) {
    (void)self;
    Py_ssize_t n;
    if (!PyArg_ParseTuple(args, "n", &n)) return NULL;
    return PyLong_FromSize_t(n < 0 ? 0 : wp_quantised_scratch((size_t)n));
}

static PyObject *quantised_fit(PyObject *self, PyObject *args) {
    (void)self;
    unsigned layout;
    int from_least;
    Py_ssize_t cols, tile_rows, tile_cols;
    Py_buffer elems, values, anchors, scratch, scales, codes;
    wp_grid grid = {0};
    size_t n_verbatim = 0;
    wp_status status = WP_ARGUMENT;
    if (!PyArg_ParseTuple(args, "Iy*nnny*y*pw*w*w*", &layout, &elems, &cols, &tile_rows, &tile_cols, &values, &anchors, &from_least, &scratch, &scales, &codes))
        return NULL;
    const wp_layout *l = wp_layout_of(layout);
    const size_t n_elems = l ? (size_t)elems.len / l->elem_bytes : 0;
    if (fits(n_elems && (size_t)elems.len == n_elems * l->elem_bytes && (size_t)codes.len == n_elems, "elems or codes") &&
        fits(cols > 0 && tile_rows > 0 && tile_cols > 0, "tiling") && fits(values.len % 4 == 0 && values.len <= (Py_ssize_t)sizeof grid.values, "values") &&
        fits(anchors.len % 4 == 0 && anchors.len <= (Py_ssize_t)sizeof grid.anchors, "anchors") &&
        fits((size_t)scratch.len >= wp_quantised_scratch(n_elems) && (uintptr_t)scratch.buf % 4 == 0, "scratch")) {
        const wp_tiling tiling = {(size_t)cols, (size_t)tile_rows, (size_t)tile_cols};
        memcpy(grid.values, values.buf, (size_t)values.len);
        memcpy(grid.anchors, anchors.buf, (size_t)anchors.len);
        grid.n_values = (unsigned)values.len / 4;
        grid.n_anchors = (unsigned)anchors.len / 4;
        grid.from_least = (unsigned)from_least;
        if (fits((size_t)scales.len == 4 * wp_tiles(tiling, n_elems) && (uintptr_t)scales.buf % 4 == 0, "scales")) {
            Py_BEGIN_ALLOW_THREADS
            status = wp_quantised_fit(layout, BYTES(elems), n_elems, tiling, &grid, scratch.buf, scales.buf, codes.buf, &n_verbatim);
            Py_END_ALLOW_THREADS
        }
    }
    PyBuffer_Release(&elems);
    PyBuffer_Release(&values);
    PyBuffer_Release(&anchors);
    PyBuffer_Release(&scratch);
    PyBuffer_Release(&scales);
    PyBuffer_Release(&codes);
    if (PyErr_Occurred()) return NULL;
    return Py_BuildValue("(in)", (int)status, (Py_ssize_t)n_verbatim);
}

static PyObject *equal(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer one, other;
    int same;
    if (!PyArg_ParseTuple(args, "y*y*", &one, &other)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    same = one.len == other.len && memcmp(one.buf, other.buf, (size_t)one.len) == 0;
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&one);
    PyBuffer_Release(&other);
    return PyBool_FromLong(same);
}

static PyObject *sample_repeats(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "y*", &data)) return NULL;
    size_t repeats = wp_sample_repeats(BYTES(data), (size_t)data.len);
    PyBuffer_Release(&data);
    return PyLong_FromSize_t(repeats);
}

static PyMethodDef methods[] = {
    {"isas", isas, METH_NOARGS, "[(name, available)], by id."},
    {"crc32c", crc32c, METH_VARARGS, "crc32c(isa, data, crc) -> crc"},
    {"histogram", histogram, METH_VARARGS, "histogram(isa, symbols, counts): counts is (256,) uint32"},
    {"split", split, METH_VARARGS, "split(isa, layout, elems, symbols, widths, bits) -> (status, bits_bytes)"},
    {"bits_bound", bits_bound, METH_VARARGS, "bits_bound(layout, n_elems) -> bytes"},
    {"rans_choose", rans_choose, METH_VARARGS, "rans_choose(counts) -> (status, book, cost_bytes)"},
    {"rans_encode", rans_encode, METH_VARARGS, "rans_encode(isa, book, symbols, scratch, out) -> (status, n_bytes)"},
    {"rans_scratch", rans_scratch, METH_VARARGS, "rans_scratch(n) -> bytes"},
    {"huffman_lengths", huffman_lengths, METH_VARARGS, "huffman_lengths(counts) -> (status, lengths)"},
    {"huffman_encode", huffman_encode, METH_VARARGS, "huffman_encode(lengths, symbols, out) -> (status, n_bytes)"},
    {"decode_streams", decode_streams, METH_VARARGS,
     "decode_streams(isa, layout, mode, [(codec, stream)], n_elems, chunk_number, out, workspace) -> (status, crc)"},
    {"workspace_bytes", workspace_bytes, METH_NOARGS, "Size of a decoder's workspace; aligned to 8."},
    {"decode_chunks", decode_chunks, METH_VARARGS,
     "decode_chunks(isa, layout, data, offsets, crcs, next, chunk_elems, n_elems, first_number, out, workspace) -> (status, next)"},
    {"multiply_chunks", multiply_chunks, METH_VARARGS,
     "multiply_chunks(isa, layout, data, offsets, crcs, next, chunk_elems, n_elems, first_number, type, x, n_cols, sums, workspace) -> (status, next)"},
    {"multiply", multiply, METH_VARARGS, "multiply(isa, type, elems, elem, x, n_cols, sums) -> status"},
    {"encode_chunks", encode_chunks, METH_VARARGS,
     "encode_chunks(isa, layout, elems, chunk_elems, first_number, most_tables, huffman, repeat_share, workspace, out, sizes, crcs) -> (status, n_done, facts "
     "of the last "
     "or None)"},
    {"encode_workspace_bytes", encode_workspace_bytes, METH_VARARGS, "encode_workspace_bytes(layout, n_elems) -> bytes"},
    {"decode_difference", decode_difference, METH_VARARGS,
     "decode_difference(isa, layout, shift, frequent, [(codec, stream)], base, n_elems, chunk_number, out, workspace) -> (status, crc)"},
    {"difference_planes", difference_planes, METH_VARARGS, "difference_planes(isa, layout, shift, elems, base, exponents, scales) -> status"},
    {"modular_differences", modular_differences, METH_VARARGS, "modular_differences(layout, shift, elems, base, differences) -> status"},
    {"difference_code", difference_code, METH_VARARGS,
     "difference_code(isa, layout, shift, elems, base, rates, base_exponent, frequent, cells, classes, counts, extras) -> (status, n_changed, extras_bytes)"},
    {"conditional_books", conditional_books, METH_VARARGS, "conditional_books(counts, logs, map) -> (status, books, n_rates)"},
    {"conditional_encode", conditional_encode, METH_VARARGS,
     "conditional_encode(isa, books, base_exponent, n_rates, map, cells, symbols, scratch, out) -> (status, n_bytes)"},
    {"scaled_base", scaled_base, METH_VARARGS, "scaled_base(layout, scales, n_cols, phase, signs, n_elems, base) -> status"},
    {"scales_gain", scales_gain, METH_VARARGS, "scales_gain(upper, n_cols, logs) -> gain"},
    {"quantised_decode", quantised_decode, METH_VARARGS,
     "quantised_decode(isa, layout, values, scales, cols, tile_rows, tile_cols, codes, verbatim, chunk_number, out) -> (status, crc)"},
    {"quantised_scratch", quantised_scratch, METH_VARARGS, "quantised_scratch(n_elems) -> bytes"},
    {"quantised_fit", quantised_fit, METH_VARARGS,
     "quantised_fit(layout, elems, cols, tile_rows, tile_cols, values, anchors, from_least, scratch, scales, codes) -> (status, n_verbatim)"},
    {"equal", equal, METH_VARARGS, "equal(one, other) -> bool"},
    {"sample_repeats", sample_repeats, METH_VARARGS, "sample_repeats(data) -> count"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "weightpack._core",
    .m_doc = "The native codec core; see native/include/weightpack.h.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__core(void) {
    for (unsigned i = 0; i < WP_N_ISAS; i++) runs[i] = wp_isa_available(i);
    return PyModuleDef_Init(&module);
}
