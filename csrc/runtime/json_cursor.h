// A strict JSON reader for untrusted headers. It builds no tree: the caller walks the text in the shape it expects, so
// only the strings it asks for are allocated, and nesting is as deep as the caller's code. It accepts RFC 8259 except
// that numbers are integers from 0 to 2^53.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace gmoe::runtime {

// A file that cannot be served; the message says what is wrong and where. It may quote the file, so control characters
// are escaped: a zero byte would end the text, an escape sequence would reach the terminal.
struct FormatError : std::runtime_error {
  explicit FormatError(const std::string& message);
};

class JsonCursor {
 public:
  // `where` opens every message, for example "header".
  JsonCursor(std::string_view text, std::string where) : text_(text), where_(std::move(where)) {}

  // Calls on_member(key) with the cursor at each member's value, which on_member must consume.
  template <typename F>
  void object(const F& on_member) {
    open('{', "an object");
    if (close_if('}')) return;
    do {
      const std::string key = string();
      expect(':');
      on_member(key);
    } while (comma_or('}'));
  }

  template <typename F>
  void array(const F& on_item) {
    open('[', "an array");
    if (close_if(']')) return;
    do {
      on_item();
    } while (comma_or(']'));
  }

  std::string string();  // decoded, valid UTF-8
  std::int64_t integer();
  bool null_if();  // consumes `null` if it is next
  void end();      // only white space may follow
  [[noreturn]] void fail(const std::string& what) const;

 private:
  void skip_space();
  char peek();
  void open(char bracket, const char* what);
  void expect(char c);
  bool close_if(char bracket);
  bool comma_or(char bracket);
  std::size_t raw_string_length() const;
  void escape(std::string& out);
  unsigned hex4();
  void utf8_sequence(std::string& out);

  std::string_view text_;
  std::string where_;
  std::size_t at_ = 0;
};

}  // namespace gmoe::runtime
