/* Packed students in C, and in every language that can call C: serves files of gmoe_ext.export.pack without Python and
 * without torch. Link with libgmoe_runtime; `python -m gmoe_ext.runtime --cflags --libs` prints the flags.
 *
 *   gmoe_student *student;
 *   gmoe_error error;
 *   if (gmoe_student_load("student.safetensors", &student, &error) != GMOE_OK) puts(error.text);
 *   gmoe_rows x = {.count = 1, .columns = 128, .data = features};
 *   gmoe_predict(student, &x, logits, &error);
 *   gmoe_student_free(student);
 *
 * Many threads may call any function on a student at once, except gmoe_student_free; there is no global state. Every
 * function that can fail returns a status and, if `error` is not NULL, writes a text into it. No exception leaves the
 * library. Integers are 64 bits wide; arrays are dense and row-major and belong to the caller: nothing is kept after a
 * call returns. Results are those of gmoe_ext.runtime.PackedStudent to the last bit. */
#ifndef GMOE_RUNTIME_H
#define GMOE_RUNTIME_H

#include <stdint.h>

#if defined(__GNUC__)
#define GMOE_API __attribute__((visibility("default")))
#else
#define GMOE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Rises when a program built against an older header would no longer work; compare with gmoe_abi_version(). */
#define GMOE_ABI_VERSION 1

typedef enum gmoe_status {
  GMOE_OK = 0,
  GMOE_ERROR_ARGUMENT = 1, /* an argument is missing, out of range, or does not fit the student */
  GMOE_ERROR_SYSTEM = 2,   /* the file cannot be opened or mapped */
  GMOE_ERROR_FORMAT = 3,   /* the file is damaged, or not a packed student of a version this library reads */
  GMOE_ERROR_MEMORY = 4,   /* out of memory */
  GMOE_ERROR_INTERNAL = 5  /* anything else: a bug in the library, or an invalid GMOE_EXT_CPU in the environment */
} gmoe_status;

/* What went wrong in a call: UTF-8, zero-terminated, truncated if too long. A call that succeeds does not change it. */
typedef struct gmoe_error {
  char text[512];
} gmoe_error;

typedef struct gmoe_student gmoe_student;

/* Strings live as long as the student. */
typedef struct gmoe_student_info {
  int64_t num_bytes;        /* of the file */
  int64_t num_inputs;       /* columns of the first layer: features and positions together */
  int64_t num_features;     /* columns of features only */
  int64_t position_columns; /* num_inputs - num_features */
  int64_t position_nodes;   /* rows of the position table in the file */
  int64_t num_classes;      /* outputs per row */
  int64_t num_layers;
  int32_t has_class_names;
  int32_t num_threads; /* maximum number of threads of a call */
  const char* model;
  const char* producer;
} gmoe_student_info;

/* With `indptr` NULL, rows are dense: `data` is [count, columns] and `indices` is not read. Otherwise they are
 * compressed sparse rows: row i has the columns indices[indptr[i] .. indptr[i + 1]), ascending, and its values in the
 * same range of `data`; indptr[0] is 0. `columns` is num_features with `nodes`, else num_inputs (positions last).
 * `nodes`, which may be NULL, is the row of the position table for each row of x, or -1 for a node that is not in it.
 */
typedef struct gmoe_rows {
  int64_t count;
  int64_t columns;
  const float* data;
  const int64_t* indptr;
  const int32_t* indices;
  const int64_t* nodes;
} gmoe_rows;

GMOE_API int32_t gmoe_abi_version(void);
GMOE_API const char* gmoe_version(void); /* of the package, for example "0.2.0" */

/* Maps the file after checking every size in it. The file must not change while the student is in use; replace it by
 * renaming a new one over it. *student is NULL after a failure. */
GMOE_API gmoe_status gmoe_student_load(const char* path, gmoe_student** student, gmoe_error* error);
GMOE_API void gmoe_student_free(gmoe_student* student); /* NULL is allowed */

GMOE_API gmoe_status gmoe_student_describe(const gmoe_student* student, gmoe_student_info* info, gmoe_error* error);
/* *name lives as long as the student; NULL if the student has no class names. */
GMOE_API gmoe_status gmoe_student_class_name(const gmoe_student* student, int64_t output, const char** name,
                                             gmoe_error* error);
/* The number of experts a row is routed to in a layer, and of all experts; 1 and 1 in a layer without a router. */
GMOE_API gmoe_status gmoe_student_layer_experts(const gmoe_student* student, int64_t layer, int64_t* k,
                                                int64_t* experts, gmoe_error* error);
/* 1 to 1024, initially the number of cores. Fewer than six rows use one thread. */
GMOE_API gmoe_status gmoe_student_set_threads(gmoe_student* student, int32_t threads, gmoe_error* error);

/* logits[count, num_classes]. A row with a NaN or an infinity gets NaN; other rows are not affected. */
GMOE_API gmoe_status gmoe_predict(const gmoe_student* student, const gmoe_rows* x, float* logits, gmoe_error* error);
/* proba[count, num_classes], the softmax of the logits. */
GMOE_API gmoe_status gmoe_predict_proba(const gmoe_student* student, const gmoe_rows* x, float* proba,
                                        gmoe_error* error);
/* proba[count, k] and classes[count, k] of the k most probable classes, descending, ties to the lower class. */
GMOE_API gmoe_status gmoe_top_classes(const gmoe_student* student, const gmoe_rows* x, int64_t k, float* proba,
                                      int64_t* classes, gmoe_error* error);
/* gate[count, k], descending, and index[count, k]: the experts of one layer that serve each row. */
GMOE_API gmoe_status gmoe_route(const gmoe_student* student, const gmoe_rows* x, int64_t layer, float* gate,
                                int64_t* index, gmoe_error* error);

#ifdef __cplusplus
}
#endif

#endif
