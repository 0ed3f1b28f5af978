// What both programs share: fit a picture into the network's input, suppress double boxes, print what is left.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

struct Box { float x1, y1, x2, y2, score; int label; };

// What `export.py` wrote about the model. Values are looked up by their names; the file is ours, so no JSON library.
struct Settings {
  std::vector<std::string> names;
  int height = 0, width = 0, pad_value = 114, max_detections = 100;
  float score_threshold = 0.25f, iou_threshold = 0.5f;
  bool letterbox = true;
};

// The text after "name": in `json`, up to the end.
inline std::string value_of(const std::string& json, const std::string& name) {
  const auto at = json.find("\"" + name + "\":");
  if (at == std::string::npos) { std::fprintf(stderr, "error: the metadata has no %s\n", name.c_str()); std::exit(1); }
  return json.substr(json.find_first_not_of(' ', at + name.size() + 3));
}

// `model` is the metadata entry of that name; class names with \u escapes are left as they are.
inline Settings read_settings(const std::string& model) {
  Settings settings;
  const std::string size = value_of(model, "input_size"), names = value_of(model, "class_names");
  std::sscanf(size.c_str(), "[%d, %d", &settings.height, &settings.width);
  settings.score_threshold = std::strtof(value_of(model, "score_threshold").c_str(), nullptr);
  settings.iou_threshold = std::strtof(value_of(model, "iou_threshold").c_str(), nullptr);
  settings.pad_value = std::atoi(value_of(model, "pad_value").c_str());
  settings.max_detections = std::atoi(value_of(model, "max_detections").c_str());
  settings.letterbox = value_of(model, "resize_mode").rfind("\"letterbox\"", 0) == 0;
  std::string name;
  bool inside = false;
  for (std::size_t i = 0; i < names.size() && (inside || names[i] != ']'); i++) {
    if (inside && names[i] == '\\' && names[i + 1] != 'u') name += names[++i];
    else if (names[i] == '"') { if (inside) { settings.names.push_back(name); name.clear(); } inside = !inside; }
    else if (inside) name += names[i];
  }
  return settings;
}

// The picture in the network's input, RGB, and the way back.
struct Fitted {
  cv::Mat canvas;
  float scale_x, scale_y, left, top;
};

inline Fitted fit(const cv::Mat& rgb, const Settings& settings) {
  int height = settings.height, width = settings.width;
  if (settings.letterbox) {
    const double ratio = std::min(double(height) / rgb.rows, double(width) / rgb.cols);
    height = std::clamp(cvRound(rgb.rows * ratio), 1, height);
    width = std::clamp(cvRound(rgb.cols * ratio), 1, width);
  }
  const int top = (settings.height - height) / 2, left = (settings.width - width) / 2;
  cv::Mat canvas(settings.height, settings.width, CV_8UC3, cv::Scalar::all(settings.pad_value)), small;
  const bool shrinks = height < rgb.rows || width < rgb.cols;
  cv::resize(rgb, small, {width, height}, 0, 0, shrinks ? cv::INTER_AREA : cv::INTER_LINEAR);
  small.copyTo(canvas(cv::Rect(left, top, width, height)));
  return {canvas, float(width) / rgb.cols, float(height) / rgb.rows, float(left), float(top)};
}

inline float overlap(const Box& a, const Box& b) {
  const float width = std::min(a.x2, b.x2) - std::max(a.x1, b.x1), height = std::min(a.y2, b.y2) - std::max(a.y1, b.y1);
  if (width <= 0 || height <= 0) return 0;
  return width * height / ((a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1) - width * height);
}

// boxes: count x 4, xyxy input pixels; scores: count x classes. Gives boxes in the picture's own pixels, best first.
inline std::vector<Box> read_boxes(const float* boxes, const float* scores, int count, const cv::Mat& rgb,
                                   const Fitted& fitted, const Settings& settings) {
  const int classes = int(settings.names.size());
  std::vector<Box> found, kept;
  for (int i = 0; i < count; i++) {
    const float* row = scores + i * classes;
    const int label = int(std::max_element(row, row + classes) - row);
    if (row[label] < settings.score_threshold) continue;
    const float* box = boxes + i * 4;
    found.push_back({box[0], box[1], box[2], box[3], row[label], label});
  }
  std::stable_sort(found.begin(), found.end(), [](const Box& a, const Box& b) { return a.score > b.score; });
  for (const Box& box : found) {
    if (int(kept.size()) == settings.max_detections) break;
    const bool twice = std::any_of(kept.begin(), kept.end(), [&](const Box& other) {
      return other.label == box.label && overlap(other, box) > settings.iou_threshold;
    });
    if (!twice) kept.push_back(box);
  }
  for (Box& box : kept) {
    box.x1 = std::clamp((box.x1 - fitted.left) / fitted.scale_x, 0.f, float(rgb.cols));
    box.x2 = std::clamp((box.x2 - fitted.left) / fitted.scale_x, 0.f, float(rgb.cols));
    box.y1 = std::clamp((box.y1 - fitted.top) / fitted.scale_y, 0.f, float(rgb.rows));
    box.y2 = std::clamp((box.y2 - fitted.top) / fitted.scale_y, 0.f, float(rgb.rows));
  }
  return kept;
}

inline cv::Mat read_picture(const char* path) {
  cv::Mat image = cv::imread(path, cv::IMREAD_COLOR);
  if (image.empty()) { std::fprintf(stderr, "error: %s: cannot be read\n", path); std::exit(1); }
  cv::cvtColor(image, image, cv::COLOR_BGR2RGB);
  return image;
}

inline void print(const char* path, const std::vector<Box>& boxes, const Settings& settings) {
  for (const Box& box : boxes)
    std::printf("%s: %s %.3f %.1f %.1f %.1f %.1f\n", path, settings.names[box.label].c_str(), box.score, box.x1, box.y1,
                box.x2, box.y2);
}
