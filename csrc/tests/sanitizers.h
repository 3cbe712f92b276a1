// Options of the sanitizers, which ask the program for them. Visible, or their libraries do not find them.
#pragma once

#define GMOE_OPTIONS_OF(sanitizer, options)                                                                           \
  extern "C" __attribute__((visibility("default"))) const char* __##sanitizer##_default_options();                    \
  extern "C" __attribute__((visibility("default"))) const char* __##sanitizer##_default_options() { return options; } \
  static_assert(true)

// AddressSanitizer fills fresh memory with bytes that make NaN, so that values read before they are written show.
#define GMOE_FILL_WITH_NAN "max_malloc_fill_size=1073741824:malloc_fill_byte=255"
