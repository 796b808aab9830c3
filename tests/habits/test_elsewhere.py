"""The network outside of PyTorch's eager mode, with adapters, and on accelerators."""

import copy

import pytest
import torch
from diffusers import DiffusionPipeline
from helpers import ROOT, tiny_pipeline

from ddpm_hf.hub import export_pipeline, load_pipeline

BATCH = {0: torch.export.Dim("batch")}
NAMES = ["sample", "timestep", "class_labels"]


def inputs(batch_size: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(batch_size)
    return (
        torch.randn(batch_size, 1, 8, 8, generator=generator),
        torch.arange(batch_size) * 2.0,
        torch.arange(batch_size) % 3,
    )


@pytest.fixture
def unet():
    """With residual blocks and attention, as the shipped model."""
    return tiny_pipeline(num_class_embeds=3, residual=True, normalize_input=False, patch_size=2).unet


@torch.no_grad()
def test_an_exported_graph_takes_any_batch(unet):
    program = torch.export.export(unet, inputs(2), dynamic_shapes=(BATCH,) * 3).module()
    for batch_size in (1, 4, 7):
        given = inputs(batch_size)
        assert torch.allclose(program(*given).sample, unet(*given).sample, atol=1e-5)


@torch.no_grad()
def test_onnx_takes_any_batch(unet, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = tmp_path / "unet.onnx"
    torch.onnx.export(unet, inputs(2), file, dynamic_shapes=(BATCH,) * 3, input_names=NAMES, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(file)
    for batch_size in (1, 4, 7):
        given = inputs(batch_size)
        (out,) = session.run(None, {name: tensor.numpy() for name, tensor in zip(NAMES, given)})
        assert torch.allclose(torch.from_numpy(out), unet(*given).sample, atol=1e-4)


def test_lora_on_every_layer_is_trained_saved_loaded_and_merged(unet, tmp_path):
    peft = pytest.importorskip("peft")
    layers = [name for name, part in unet.named_modules() if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)]
    assert any("conv" in name for name in layers) and any("to_qkv" in name for name in layers)
    config = peft.LoraConfig(r=2, target_modules=layers, init_lora_weights="gaussian")
    tuned = peft.get_peft_model(copy.deepcopy(unet), config)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], 1e-2)
    given = inputs(3)
    before = unet(*given).sample
    for _ in range(2):
        tuned(*given).sample.square().mean().backward()
        optimizer.step()
    tuned.eval()
    after = tuned(*given).sample
    assert (after - before).abs().max() > 1e-2
    tuned.save_pretrained(tmp_path / "lora")

    pipeline = tiny_pipeline()
    pipeline.unet = peft.PeftModel.from_pretrained(copy.deepcopy(unet), tmp_path / "lora")
    assert torch.allclose(pipeline.unet(*given).sample, after, atol=1e-5)
    with pytest.raises(ValueError, match=r"unet is of class PeftModel.*merge_and_unload"):
        pipeline.save_pretrained(tmp_path / "model")
    pipeline.unet = pipeline.unet.base_model.model  # our class, with the adapters' layers in it
    with pytest.raises(ValueError, match=r"unet cannot be saved: .* Merge adapters"):
        pipeline.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    pipeline.unet = peft.PeftModel.from_pretrained(copy.deepcopy(unet), tmp_path / "lora").merge_and_unload()
    pipeline.save_pretrained(tmp_path / "model")
    assert torch.allclose(load_pipeline(tmp_path / "model").unet(*given).sample, after, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_offload_and_the_types_of_an_accelerator(tmp_path):
    folder = export_pipeline(tmp_path / "model", tiny_pipeline(num_class_embeds=3))
    expected = load_pipeline(folder)(2, [0, 1], seed=0, num_inference_steps=3, output_type="pt").images

    def images(pipeline):
        return pipeline(2, [0, 1], seed=0, num_inference_steps=3, output_type="pt").images.float().cpu()

    for offload in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
        getattr(pipeline, offload)()
        assert (images(pipeline) - expected).abs().max() < 1e-3
        assert next(pipeline.unet.parameters()).device.type != "cuda"
    with pytest.raises(ValueError, match="offloaded"):
        pipeline.save_pretrained(tmp_path / "again")
    for dtype in (torch.float16, torch.bfloat16):
        assert (images(load_pipeline(folder, device="cuda", dtype=dtype)) - expected).abs().max() < 0.1
    pipeline = load_pipeline(folder, device="cuda", dtype=torch.bfloat16)
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert torch.isfinite(images(pipeline)).all()


def test_the_fine_tuning_of_the_docs_trains_the_shipped_model(tmp_path, monkeypatch):
    """Its snippet, on 8 images."""
    page = (ROOT / "docs" / "diffusers.md").read_text(encoding="utf-8")
    snippet = page.split("## Fine-tune")[1].split("```python\n")[1].split("```")[0]
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 30
    changes = {
        'split="train"': 'split="train[:8]"',
        "batch_size=32": "batch_size=4",
        "runs/": f"{tmp_path.as_posix()}/",
    }
    for old, new in changes.items():
        assert snippet.count(old) == 1
        snippet = snippet.replace(old, new)
    monkeypatch.chdir(ROOT)
    names = {}
    exec(snippet, names)
    before = load_pipeline("pretrained/fashion_mnist_small").unet.state_dict()
    after = load_pipeline(tmp_path / "fine_tuned").unet.state_dict()
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) > 0.9 * len(before) and "time_embed.weight" not in changed
    assert torch.isfinite(names["loss"])
