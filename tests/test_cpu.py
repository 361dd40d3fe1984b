"""float32 products by oneDNN: on which CPUs, for how long, and with all digits."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bert_convolutions import cpu
from bert_convolutions.cpu import fast_float32_products
from bert_convolutions.model import CompositeBertConfig, CompositeBertForMaskedLM
from bert_convolutions.training.arguments import BertTrainingArguments, evaluation_precision
from bert_convolutions.training.resumable import ResumableTrainer
from tests.helpers import TINY

SETTING: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cpu, "_onednn_is_faster", lambda: True)
    yield
    assert SETTING.fp32_precision == "none"


def cpu_info(vendor: str, family: int) -> str:
    processor = f"vendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 2\nmodel name\t: some\n"
    return f"processor\t: 0\n{processor}\nprocessor\t: 1\n{processor}"


@pytest.mark.parametrize(
    ("vendor", "family", "found"),
    [("AuthenticAMD", 26, True), ("AuthenticAMD", 25, False), ("GenuineIntel", 6, False), ("GenuineIntel", 26, False)],
)
def test_full_avx512_units_of_amd_are_recognised(
    vendor: str, family: int, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert not cpu._is_zen5_with_mkl()  # no such file, as on macOS
    cpu._CPU_INFO.write_text(cpu_info(vendor, family))
    assert cpu._is_zen5_with_mkl() is found
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not cpu._is_zen5_with_mkl()


def test_the_setting_is_undone_and_may_be_nested(faster: None) -> None:
    with fast_float32_products(), fast_float32_products():
        assert SETTING.fp32_precision == "bf16"
    assert SETTING.fp32_precision == "none"
    with pytest.raises(KeyError), fast_float32_products():
        raise KeyError


def test_a_setting_of_the_user_stays(faster: None) -> None:
    SETTING.fp32_precision = "ieee"
    try:
        with fast_float32_products():
            assert SETTING.fp32_precision == "ieee"
        assert SETTING.fp32_precision == "ieee"
    finally:
        SETTING.fp32_precision = "none"


def test_other_cpus_keep_their_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_onednn_is_faster", lambda: False)
    with fast_float32_products():
        assert SETTING.fp32_precision == "none"


def test_rounded_products_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.mm
    for dtype, kept in ((torch.bfloat16, False), (torch.float16, False), (torch.float64, True)):
        monkeypatch.setattr(
            torch, "mm", lambda *factors, dtype=dtype: exact(*(each.to(dtype) for each in factors)).float()
        )
        assert cpu._keeps_float32() is kept
        assert SETTING.fp32_precision == "none"


@pytest.mark.parametrize("context", [torch.autocast("cpu", torch.bfloat16), torch.device("meta")])
def test_the_first_use_may_be_in_another_context(
    context: AbstractContextManager[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast the result had no digits to compare, so rounded products were taken for exact ones."""
    exact, products = torch.mm, []
    monkeypatch.setattr(torch, "mm", lambda *factors: products.append(exact(*factors)) or products[-1])
    with context:
        cpu._keeps_float32()
    assert [(product.dtype, product.device.type) for product in products] == [(torch.float32, "cpu")]


@pytest.mark.parametrize("of_cpu", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_onednn_is_called_only_where_it_is_fast_and_exact(
    of_cpu: bool, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_is_zen5_with_mkl", lambda: of_cpu)
    monkeypatch.setattr(cpu, "_keeps_float32", lambda: exact)
    assert cpu._onednn_is_faster.__wrapped__() is (of_cpu and exact)


def test_products_of_a_run_have_all_digits() -> None:
    """Whatever this CPU is."""
    left, right = (torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 70, 90))) for seed in (0, 1))
    with fast_float32_products():
        product = torch.bmm(left.float(), right.float().mT)
    torch.testing.assert_close(product.double(), torch.bmm(left, right.mT), rtol=0, atol=2e-5)


def test_training_and_evaluation_use_it_forward_and_backward(tmp_path: Path, faster: None) -> None:
    model = CompositeBertForMaskedLM(CompositeBertConfig(vocab_size=9, **TINY))
    trainer = ResumableTrainer(model, BertTrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    found = []
    model.register_forward_hook(lambda *_: found.append(("forward", SETTING.fp32_precision)))
    model.bert.embeddings.LayerNorm.weight.register_hook(lambda _: found.append(("backward", SETTING.fp32_precision)))
    batch = {"input_ids": torch.ones(2, 4, dtype=torch.long), "labels": torch.ones(2, 4, dtype=torch.long)}
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.training_step(model, batch)
    with evaluation_precision(trainer.args):
        model(**batch)
    assert found == [("forward", "bf16"), ("backward", "bf16"), ("forward", "bf16")]
