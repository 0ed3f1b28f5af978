// Find objects with an exported file by ONNX Runtime: onnxruntime_detect best.onnx photo.jpg...
// The file: python export.py --checkpoint best.pth --uint8-input

#include <onnxruntime_cxx_api.h>

#include "detector.hpp"

int main(int argc, char** argv) {
  if (argc < 3) { std::fprintf(stderr, "usage: onnxruntime_detect MODEL.onnx PHOTO...\n"); return 2; }
  try {
    Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "detect");
    Ort::SessionOptions options;
    options.SetGraphOptimizationLevel(GraphOptimizationLevel::ORT_ENABLE_ALL);
    Ort::Session session(env, argv[1], options);
    Ort::AllocatorWithDefaultOptions allocator;
    const auto texts = session.GetModelMetadata();
    const Settings settings = read_settings(texts.LookupCustomMetadataMapAllocated("model", allocator).get());
    const std::string form = texts.LookupCustomMetadataMapAllocated("form", allocator).get();
    if (value_of(form, "uint8_input").rfind("true", 0) || value_of(form, "decodes").rfind("true", 0)) {
      std::fprintf(stderr, "error: %s: export it with --uint8-input and without --raw\n", argv[1]);
      return 1;
    }
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const char* inputs[] = {"images"};
    const char* outputs[] = {"boxes", "scores"};
    const int64_t shape[] = {1, settings.height, settings.width, 3};
    for (int i = 2; i < argc; i++) {
      const cv::Mat picture = read_picture(argv[i]);
      const Fitted fitted = fit(picture, settings);
      Ort::Value image = Ort::Value::CreateTensor<uint8_t>(memory, fitted.canvas.data, fitted.canvas.total() * 3, shape, 4);
      const auto found = session.Run(Ort::RunOptions(), inputs, &image, 1, outputs, 2);
      const int count = int(found[0].GetTensorTypeAndShapeInfo().GetShape()[1]);
      const auto boxes = read_boxes(found[0].GetTensorData<float>(), found[1].GetTensorData<float>(), count, picture,
                                    fitted, settings);
      print(argv[i], boxes, settings);
    }
  } catch (const Ort::Exception& error) {
    std::fprintf(stderr, "error: %s: %s\n", argv[1], error.what());
    return 1;
  }
}
