/* Prints the class, its probability and its name for each line of numbers on standard input, using a packed student:
 *   cc examples/serve.c $(python -m gmoe_ext.runtime --cflags --libs) -o serve
 *   ./serve student.safetensors < rows.txt
 * A line holds the features and, for a student with a position table, the node: its row in the table, -1 if it is not
 * in it. Numbers are separated by blanks or commas. The first line that is anything else ends the program with an
 * error. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <gmoe_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(const gmoe_error* error) {
  fprintf(stderr, "error: %s\n", error->text);
  return 1;
}

static int refuse(long long line, const gmoe_student_info* info, const char* got) {
  fprintf(stderr, "error: line %lld: expected %lld numbers", line,
          (long long)(info->position_nodes > 0 ? info->num_features : info->num_inputs));
  if (info->position_nodes > 0) {
    fprintf(stderr, " and a node in [0, %lld), or -1 for a node that is not in the table",
            (long long)info->position_nodes);
  }
  fprintf(stderr, "; got %s\n", got);
  return 1;
}

/* Reads up to `most` numbers of a line; returns how many the line holds, or -1 if a word is not a finite number. */
static int64_t numbers(const char* text, double* value, int64_t most) {
  const char* blanks = " \t\r\n,";
  int64_t count = 0;
  for (text += strspn(text, blanks); *text != '\0'; text += strspn(text, blanks)) {
    char* end;
    const double number = strtod(text, &end);
    if (end == text || (*end != '\0' && strchr(blanks, *end) == NULL) || !isfinite((float)number)) return -1;
    if (count < most) value[count] = number;
    ++count;
    text = end;
  }
  return count;
}

int main(int argc, char** argv) {
  gmoe_student* student;
  gmoe_student_info info;
  gmoe_error error;
  if (argc != 2) return fprintf(stderr, "usage: serve STUDENT < ROWS\n"), 2;
  if (gmoe_student_load(argv[1], &student, &error) != GMOE_OK) return fail(&error);
  if (gmoe_student_describe(student, &info, &error) != GMOE_OK) return fail(&error);
  const int has_table = info.position_nodes > 0;
  const int64_t columns = has_table ? info.num_features : info.num_inputs, wanted = columns + has_table;
  double* value = malloc((size_t)wanted * sizeof *value);
  float* row = malloc((size_t)(columns > 0 ? columns : 1) * sizeof *row);
  if (value == NULL || row == NULL) return fprintf(stderr, "error: out of memory\n"), 1;
  int64_t node = -1;
  const gmoe_rows x = {.count = 1, .columns = columns, .data = row, .nodes = has_table ? &node : NULL};
  char *line = NULL, got[48];
  size_t room = 0;
  ssize_t length;
  for (long long number = 1; (length = getline(&line, &room, stdin)) >= 0; ++number) {
    const int64_t count = strlen(line) == (size_t)length ? numbers(line, value, wanted) : -1;
    snprintf(got, sizeof got, count < 0 ? "something else" : "%lld numbers", (long long)count);
    if (count != wanted) return refuse(number, &info, got);
    for (int64_t i = 0; i < columns; ++i) row[i] = (float)value[i];
    if (has_table) {
      const double last = value[columns];
      snprintf(got, sizeof got, "node %.10g", last);
      if (!(last >= -1 && last < (double)info.position_nodes)) return refuse(number, &info, got);
      node = (int64_t)last;
      if ((double)node != last) return refuse(number, &info, got);
    }
    float probability;
    int64_t class;
    const char* name;
    if (gmoe_top_classes(student, &x, 1, &probability, &class, &error) != GMOE_OK) return fail(&error);
    if (gmoe_student_class_name(student, class, &name, &error) != GMOE_OK) return fail(&error);
    printf("%lld %.6f %s\n", (long long)class, probability, name == NULL ? "" : name);
  }
  if (ferror(stdin) || fflush(stdout) != 0) return fprintf(stderr, "error: %s\n", strerror(errno)), 1;
  free(line);
  free(row);
  free(value);
  gmoe_student_free(student);
  return 0;
}
