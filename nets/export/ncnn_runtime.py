"""Run ncnn files (phones and boards), without PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nets.export.attached import read_beside
from nets.export.exported import ExportedRuntime
from nets.export.formats import FORMATS
from utils.cpus import num_threads
from utils.errors import UserError

INPUT = "in0"
FP16_OPTIONS = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic")


class NcnnRuntime(ExportedRuntime):
    """Runs an ncnn file on ncnn, on the CPU."""

    name = "ncnn"

    def __init__(self, path: Path, device: str = "cpu") -> None:
        import ncnn

        param_file, bin_file, json_file = FORMATS["ncnn"].files(path)
        # The digests are checked first, because ncnn crashes on damaged files.
        _, texts = read_beside(json_file, [param_file, bin_file])
        super().__init__(path, texts, device)
        self.net, self._mat = ncnn.Net(), ncnn.Mat
        self.net.opt.num_threads = num_threads()
        for option in FP16_OPTIONS:
            setattr(self.net.opt, option, self.form.precision == "fp16")
        if self.net.load_param(str(param_file)) or self.net.load_model(str(bin_file)):
            raise UserError(path, "ncnn cannot load it", "export it again")
        self._outputs = [f"out{number}" for number in range(len(self.form.outputs))]

    def call(self, images: np.ndarray) -> list[np.ndarray]:
        extractor = self.net.create_extractor()
        extractor.input(INPUT, self._mat(images[0]))
        outputs = []
        for name in self._outputs:
            status, output = extractor.extract(name)
            if status:
                raise RuntimeError(f"{name}: status {status}")
            outputs.append(np.array(output)[None])  # ncnn has no batch dimension
        return outputs
