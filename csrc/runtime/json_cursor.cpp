#include "runtime/json_cursor.h"

#include <algorithm>

namespace gmoe::runtime {
namespace {

constexpr std::int64_t kLargestInteger = std::int64_t{1} << 53;

void append_utf8(std::string& out, unsigned code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xC0 | (code >> 6));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xE0 | (code >> 12));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | (code >> 18));
    out += static_cast<char>(0x80 | ((code >> 12) & 0x3F));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (code & 0x3F));
  }
}

std::string hex(char c) {
  constexpr char kHex[] = "0123456789abcdef";
  const auto byte = static_cast<unsigned char>(c);
  return {kHex[byte >> 4], kHex[byte & 15]};
}

std::string quoted(char c) {
  if (c >= 0x20 && c < 0x7F) return std::string("'") + c + "'";
  return "byte 0x" + hex(c);
}

std::string without_control(const std::string& message) {
  std::string text;
  for (const char c : message) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      text += "\\x" + hex(c);
    } else {
      text += c;
    }
  }
  return text;
}

}  // namespace

FormatError::FormatError(const std::string& message) : std::runtime_error(without_control(message)) {}

void JsonCursor::fail(const std::string& what) const {
  throw FormatError(where_ + ": " + what + " at byte " + std::to_string(at_));
}

void JsonCursor::skip_space() {
  while (at_ < text_.size()) {
    const char c = text_[at_];
    if (c != ' ' && c != '\n' && c != '\t' && c != '\r') return;
    ++at_;
  }
}

char JsonCursor::peek() {
  skip_space();
  if (at_ == text_.size()) fail("the JSON text ends too early");
  return text_[at_];
}

void JsonCursor::expect(char c) {
  const char got = peek();
  if (got != c) fail("expected " + quoted(c) + ", got " + quoted(got));
  ++at_;
}

void JsonCursor::open(char bracket, const char* what) {
  const char got = peek();
  if (got != bracket) fail(std::string("expected ") + what + ", got " + quoted(got));
  ++at_;
}

bool JsonCursor::close_if(char bracket) {
  if (peek() != bracket) return false;
  ++at_;
  return true;
}

bool JsonCursor::comma_or(char bracket) {
  const char got = peek();
  if (got != ',' && got != bracket) fail("expected ',' or " + quoted(bracket) + ", got " + quoted(got));
  ++at_;
  return got == ',';
}

std::int64_t JsonCursor::integer() {
  const char first = peek();
  if (first < '0' || first > '9') fail("expected an integer >= 0, got " + quoted(first));
  std::int64_t value = 0;
  const std::size_t begin = at_;
  for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
    value = value * 10 + (text_[at_] - '0');
    if (value > kLargestInteger) fail("an integer is larger than 2^53");
  }
  if (first == '0' && at_ - begin > 1) fail("an integer starts with 0");
  if (at_ < text_.size() && (text_[at_] == '.' || text_[at_] == 'e' || text_[at_] == 'E')) {
    fail("expected an integer, got a fraction");
  }
  return value;
}

bool JsonCursor::null_if() {
  if (peek() != 'n') return false;
  if (text_.substr(at_, 4) != "null") fail("expected null");
  at_ += 4;
  return true;
}

void JsonCursor::end() {
  skip_space();
  if (at_ != text_.size()) fail("text after the JSON value");
}

std::string JsonCursor::string() {
  const char first = peek();
  if (first != '"') fail("expected a string, got " + quoted(first));
  ++at_;
  std::string out;
  out.reserve(raw_string_length());
  for (;;) {
    if (at_ == text_.size()) fail("a string does not end");
    const auto c = static_cast<unsigned char>(text_[at_]);
    if (c == '"') break;
    if (c < 0x20) fail("a string holds a raw control character");
    if (c == '\\') {
      ++at_;
      escape(out);
    } else if (c < 0x80) {
      out += static_cast<char>(c);
      ++at_;
    } else {
      utf8_sequence(out);
    }
  }
  ++at_;
  return out;
}

// Bytes up to the closing quote, which the decoded string never exceeds.
std::size_t JsonCursor::raw_string_length() const {
  std::size_t end = at_;
  while (end < text_.size() && text_[end] != '"') end += text_[end] == '\\' ? 2 : 1;
  return std::min(end, text_.size()) - at_;
}

void JsonCursor::escape(std::string& out) {
  if (at_ == text_.size()) fail("a string does not end");
  switch (text_[at_++]) {
    case '"': out += '"'; return;
    case '\\': out += '\\'; return;
    case '/': out += '/'; return;
    case 'b': out += '\b'; return;
    case 'f': out += '\f'; return;
    case 'n': out += '\n'; return;
    case 'r': out += '\r'; return;
    case 't': out += '\t'; return;
    case 'u': break;
    default: --at_; fail("an unknown escape in a string");
  }
  unsigned code = hex4();
  if (code >= 0xD800 && code < 0xDC00) {
    if (text_.substr(at_, 2) != "\\u") fail("a surrogate without its second half");
    at_ += 2;
    const unsigned low = hex4();
    if (low < 0xDC00 || low > 0xDFFF) fail("a surrogate without its second half");
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  } else if (code >= 0xDC00 && code < 0xE000) {
    fail("the second half of a surrogate stands alone");
  }
  append_utf8(out, code);
}

unsigned JsonCursor::hex4() {
  if (text_.size() - at_ < 4) fail("a string does not end");
  unsigned code = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = text_[at_];
    const int digit = c >= '0' && c <= '9'   ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) fail("expected four hexadecimal digits");
    code = code * 16 + static_cast<unsigned>(digit);
    ++at_;
  }
  return code;
}

void JsonCursor::utf8_sequence(std::string& out) {
  const auto lead = static_cast<unsigned char>(text_[at_]);
  const int length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text_.size() - at_ < static_cast<std::size_t>(length)) fail("invalid UTF-8");
  unsigned code = lead & (0xFFu >> (length + 1));
  for (int i = 1; i < length; ++i) {
    const auto next = static_cast<unsigned char>(text_[at_ + static_cast<std::size_t>(i)]);
    if ((next & 0xC0) != 0x80) fail("invalid UTF-8");
    code = (code << 6) | (next & 0x3F);
  }
  const unsigned smallest = length == 4 ? 0x10000 : length == 3 ? 0x800 : 0x80;
  if (code < smallest || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) fail("invalid UTF-8");
  out.append(text_.substr(at_, static_cast<std::size_t>(length)));
  at_ += static_cast<std::size_t>(length);
}

}  // namespace gmoe::runtime
