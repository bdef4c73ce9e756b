"""Writes the weights of a GGUF file as a folder that vLLM loads; run by the interpreter that has vLLM."""

import shutil
import sys
from pathlib import Path

import torch
import transformers


def write_weights(gguf: Path, folder: Path) -> None:
    unfinished = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    as_numbers = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=as_numbers
    )
    # The weights are plain numbers now; with this entry vLLM would look for quantized ones.
    vars(model.config).pop("quantization_config", None)
    tokenizer.save_pretrained(unfinished)
    model.save_pretrained(unfinished)
    unfinished.replace(folder)


if __name__ == "__main__":
    write_weights(Path(sys.argv[1]), Path(sys.argv[2]))
