// Find objects with an exported file by ncnn: ncnn_detect best photo.jpg...
// The files best.ncnn.param, best.ncnn.bin and best.ncnn.json: python export.py --checkpoint best.pth --format ncnn

#include <net.h>  // of ncnn

#include "detector.hpp"

// The entry `model` of NAME.ncnn.json is JSON inside a JSON string: this takes the escapes of the outer one away.
static std::string model_entry(const std::string& file) {
  std::string text = value_of(file, "model"), entry;
  for (std::size_t i = 1; i < text.size() && text[i] != '"'; i++) entry += text[i] == '\\' ? text[++i] : text[i];
  return entry;
}

int main(int argc, char** argv) {
  if (argc < 3) { std::fprintf(stderr, "usage: ncnn_detect NAME PHOTO...\n"); return 2; }
  const std::string name = argv[1];
  std::ifstream metadata(name + ".ncnn.json");
  const std::string file((std::istreambuf_iterator<char>(metadata)), {});
  if (file.empty()) { std::fprintf(stderr, "error: %s.ncnn.json: cannot be read\n", name.c_str()); return 1; }
  const Settings settings = read_settings(model_entry(file));
  ncnn::Net net;
  net.opt.num_threads = 4;
  if (net.load_param((name + ".ncnn.param").c_str()) || net.load_model((name + ".ncnn.bin").c_str())) return 1;
  for (int i = 2; i < argc; i++) {
    const cv::Mat picture = read_picture(argv[i]);
    const Fitted fitted = fit(picture, settings);
    ncnn::Mat image = ncnn::Mat::from_pixels(fitted.canvas.data, ncnn::Mat::PIXEL_RGB, settings.width, settings.height);
    const float to_unit[3] = {1 / 255.f, 1 / 255.f, 1 / 255.f};
    image.substract_mean_normalize(nullptr, to_unit);  // ncnn's own spelling
    ncnn::Extractor extractor = net.create_extractor();
    extractor.input("in0", image);
    ncnn::Mat boxes, scores;
    if (extractor.extract("out0", boxes) || extractor.extract("out1", scores)) return 1;
    print(argv[i], read_boxes(boxes, scores, boxes.h, picture, fitted, settings), settings);
  }
}
