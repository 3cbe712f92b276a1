/* Prints the class, its probability and its name for each row of numbers on standard input, using a packed student:
 *   cc examples/serve.c $(python -m gmoe_ext.runtime --cflags --libs) -o serve
 *   ./serve student.safetensors < rows.txt */
#include <gmoe_runtime.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(const gmoe_error* error) {
  fprintf(stderr, "error: %s\n", error->text);
  return 1;
}

int main(int argc, char** argv) {
  gmoe_student* student;
  gmoe_student_info info;
  gmoe_error error;
  if (argc != 2) return fprintf(stderr, "usage: serve STUDENT < ROWS\n"), 2;
  if (gmoe_student_load(argv[1], &student, &error) != GMOE_OK) return fail(&error);
  if (gmoe_student_describe(student, &info, &error) != GMOE_OK) return fail(&error);
  float* row = malloc((size_t)info.num_inputs * sizeof *row);
  if (row == NULL) return fprintf(stderr, "error: out of memory\n"), 1;
  const gmoe_rows x = {.count = 1, .columns = info.num_inputs, .data = row};
  int64_t column = 0;
  while (scanf("%f", &row[column]) == 1) {
    if (++column < info.num_inputs) continue;
    column = 0;
    float probability;
    int64_t class;
    const char* name;
    if (gmoe_top_classes(student, &x, 1, &probability, &class, &error) != GMOE_OK) return fail(&error);
    if (gmoe_student_class_name(student, class, &name, &error) != GMOE_OK) return fail(&error);
    printf("%lld %.6f %s\n", (long long)class, probability, name == NULL ? "" : name);
  }
  if (column != 0 || !feof(stdin)) return fprintf(stderr, "error: the last row is not complete\n"), 1;
  free(row);
  gmoe_student_free(student);
  return 0;
}
