// gmoe_runtime.h on PackedStudent. Each function checks its pointers, and `guarded` turns what is thrown into a status
// and a text, so that no exception leaves the library.
#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>
#include <string>
#include <system_error>

#include "runtime/gmoe_runtime.h"
#include "runtime/packed_student.h"

struct gmoe_student {
  explicit gmoe_student(const char* path) : packed(path) {}
  gmoe::runtime::PackedStudent packed;
};

namespace {

namespace rt = gmoe::runtime;

gmoe_status report(gmoe_error* error, gmoe_status status, const char* call, const char* what) noexcept {
  if (error == nullptr) return status;
  std::size_t at = 0;
  for (const char* text : {call, ": ", what}) {
    const std::size_t length = std::strlen(text);
    std::size_t taken = std::min(length, sizeof error->text - 1 - at);
    while (taken < length && taken > 0 && (text[taken] & 0xc0) == 0x80) --taken;  // not inside a character
    std::memcpy(error->text + at, text, taken);
    at += taken;
    if (taken < length) break;
  }
  error->text[at] = '\0';
  return status;
}

template <typename F>
gmoe_status guarded(const char* call, gmoe_error* error, const F& body) noexcept {
  try {
    body();
    return GMOE_OK;
  } catch (const rt::FormatError& caught) {
    return report(error, GMOE_ERROR_FORMAT, call, caught.what());
  } catch (const std::system_error& caught) {
    return report(error, GMOE_ERROR_SYSTEM, call, caught.what());
  } catch (const std::invalid_argument& caught) {
    return report(error, GMOE_ERROR_ARGUMENT, call, caught.what());
  } catch (const rt::NodeError& caught) {
    return report(error, GMOE_ERROR_ARGUMENT, call, caught.what());
  } catch (const std::bad_alloc&) {
    return report(error, GMOE_ERROR_MEMORY, call, "out of memory");
  } catch (const std::exception& caught) {
    return report(error, GMOE_ERROR_INTERNAL, call, caught.what());
  } catch (...) {
    return report(error, GMOE_ERROR_INTERNAL, call, "unknown exception");
  }
}

struct Named {
  const char* name;
  const void* pointer;
};

void need(std::initializer_list<Named> arguments) {
  for (const Named& argument : arguments) {
    if (argument.pointer == nullptr) throw std::invalid_argument(std::string("'") + argument.name + "' is NULL");
  }
}

rt::Rows take(const gmoe_student* student, const gmoe_rows* x) {
  if (x->count < 0) throw std::invalid_argument("'x.count' is " + std::to_string(x->count));
  rt::Rows rows;
  rows.count = x->count;
  rows.columns = x->columns;
  rows.nodes = x->nodes;
  if (x->indptr == nullptr) {
    if (x->count > 0) need({{"x.data", x->data}});
    rows.dense = x->data;
  } else {
    rows.stored = x->indptr[x->count];
    if (rows.stored > 0) need({{"x.data", x->data}, {"x.indices", x->indices}});
    rows.offsets = x->indptr;
    rows.column = x->indices;
    rows.value = x->data;
  }
  rt::check_rows(student->packed.file(), rows);
  return rows;
}

gmoe_student* open_student(const char* path) {
  try {
    return new gmoe_student(path);
  } catch (const rt::FormatError& error) {
    throw rt::FormatError(std::string(path) + ": " + error.what());
  } catch (const std::system_error& error) {
    throw std::system_error(error.code(), path);
  }
}

}  // namespace

int32_t gmoe_abi_version(void) { return GMOE_ABI_VERSION; }

const char* gmoe_version(void) { return GMOE_VERSION; }

gmoe_status gmoe_student_load(const char* path, gmoe_student** student, gmoe_error* error) {
  return guarded("gmoe_student_load", error, [&] {
    need({{"path", path}, {"student", student}});
    *student = nullptr;
    gmoe::core::active_isa();  // a wrong GMOE_EXT_CPU is reported here, not at the first prediction
    *student = open_student(path);
  });
}

void gmoe_student_free(gmoe_student* student) { delete student; }

gmoe_status gmoe_student_describe(const gmoe_student* student, gmoe_student_info* info, gmoe_error* error) {
  return guarded("gmoe_student_describe", error, [&] {
    need({{"student", student}, {"info", info}});
    const rt::StudentFile& file = student->packed.file();
    *info = {};
    info->num_bytes = file.num_bytes();
    info->num_inputs = file.num_inputs();
    info->num_features = file.features.columns;
    info->position_columns = file.features.position_columns;
    info->position_nodes = file.features.position_nodes;
    info->num_classes = student->packed.num_outputs();
    info->num_layers = static_cast<int64_t>(file.layers.size());
    info->has_class_names = file.classes.size() > 0;
    info->num_threads = student->packed.num_threads();
    info->model = file.model.c_str();
    info->producer = file.producer.c_str();
  });
}

gmoe_status gmoe_student_class_name(const gmoe_student* student, int64_t output, const char** name, gmoe_error* error) {
  return guarded("gmoe_student_class_name", error, [&] {
    need({{"student", student}, {"name", name}});
    if (output < 0 || output >= student->packed.num_outputs()) {
      throw std::invalid_argument("expected 'output' in [0, " + std::to_string(student->packed.num_outputs()) +
                                  "), got " + std::to_string(output));
    }
    const rt::StringList& classes = student->packed.file().classes;
    *name = classes.size() == 0 ? nullptr : classes[static_cast<std::size_t>(output)].data();
  });
}

gmoe_status gmoe_student_layer_experts(const gmoe_student* student, int64_t layer, int64_t* k, int64_t* experts,
                                       gmoe_error* error) {
  return guarded("gmoe_student_layer_experts", error, [&] {
    need({{"student", student}, {"k", k}, {"experts", experts}});
    rt::check_layer(student->packed.file(), layer);
    const gmoe::core::RoutedLayer& routed = student->packed.file().layers[static_cast<std::size_t>(layer)];
    *k = routed.k;
    *experts = routed.experts;
  });
}

gmoe_status gmoe_student_set_threads(gmoe_student* student, int32_t threads, gmoe_error* error) {
  return guarded("gmoe_student_set_threads", error, [&] {
    need({{"student", student}});
    rt::check_threads(threads);
    student->packed.set_num_threads(threads);
  });
}

gmoe_status gmoe_predict(const gmoe_student* student, const gmoe_rows* x, float* logits, gmoe_error* error) {
  return guarded("gmoe_predict", error, [&] {
    need({{"student", student}, {"x", x}, {"logits", logits}});
    student->packed.predict(take(student, x), logits);
  });
}

gmoe_status gmoe_predict_proba(const gmoe_student* student, const gmoe_rows* x, float* proba, gmoe_error* error) {
  return guarded("gmoe_predict_proba", error, [&] {
    need({{"student", student}, {"x", x}, {"proba", proba}});
    student->packed.predict_proba(take(student, x), proba);
  });
}

gmoe_status gmoe_top_classes(const gmoe_student* student, const gmoe_rows* x, int64_t k, float* proba, int64_t* classes,
                             gmoe_error* error) {
  return guarded("gmoe_top_classes", error, [&] {
    need({{"student", student}, {"x", x}, {"proba", proba}, {"classes", classes}});
    rt::check_top(student->packed.file(), k);
    student->packed.top_classes(take(student, x), k, classes, proba);
  });
}

gmoe_status gmoe_route(const gmoe_student* student, const gmoe_rows* x, int64_t layer, float* gate, int64_t* index,
                       gmoe_error* error) {
  return guarded("gmoe_route", error, [&] {
    need({{"student", student}, {"x", x}, {"gate", gate}, {"index", index}});
    rt::check_routed_layer(student->packed.file(), layer);
    student->packed.route(take(student, x), static_cast<std::size_t>(layer), gate, index);
  });
}
