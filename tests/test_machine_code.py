"""Reading machine code without a GPU: resources, inner loops, tensor-core instructions."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from foveate.kernels.triton.offline import amdgcn, sass
from foveate.kernels.triton.offline.loops import inner_loops
from foveate.kernels.triton.offline.reading import Loop, read_listing

# two loops with products; the first waits for a barrier whose retry lies behind the end, and the
# third loop holds no product
SASS = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_2) ;
.L_x_0:
        /*0020*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR6], R4 ;
        /*0030*/              @!P1 BRA `(.L_x_5) ;
.L_x_1:
        /*0040*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT ;
        /*0050*/                   HGMMA.64x128x16.F32.BF16 R24, R88, gdesc[UR12], R24, gsb0 ;
        /*0060*/               @P0 BRA `(.L_x_0) ;
.L_x_2:
        /*0070*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0080*/               @P2 BRA `(.L_x_3) ;
        /*0090*/                   FADD R4, R4, R5 ;
.L_x_3:
        /*00a0*/                   FFMA R4, R4, R5, R6 ;
        /*00b0*/               @P0 BRA `(.L_x_2) ;
.L_x_4:
        /*00c0*/                   STG.E [R2], R4 ;
        /*00d0*/              @!P3 BRA `(.L_x_4) ;
        /*00e0*/                   EXIT ;
.L_x_5:
        /*00f0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR6], R4 ;
        /*0100*/              @!P1 BRA `(.L_x_5) ;
        /*0110*/                   BRA `(.L_x_1) ;
"""
USAGE = " Function kernel:\n  REG:224 STACK:40 SHARED:0 LOCAL:8 CONSTANT[0]:700 TEXTURE:0"

AMDGCN = """
kernel:                                 ; @kernel
; %bb.0:
	s_load_dwordx4 s[0:3], s[4:5], 0x0
	s_cbranch_scc1 .LBB0_3
.LBB0_1:                                ; =>This Inner Loop Header: Depth=1
	v_mfma_f32_32x32x8_bf16 v[0:15], v[20:21], v[22:23], v[0:15]
	v_exp_f32_e32 v30, v31
	s_cbranch_scc0 .LBB0_1
.LBB0_3:
	s_endpgm
.Lfunc_end0:
	.size	kernel, .Lfunc_end0-kernel
	v_mfma_f32_32x32x8_bf16 of another function
    .private_segment_fixed_size: 116
    .vgpr_count:     256
    .vgpr_spill_count: 12
"""

KERNEL = """
import json
import sys
from dataclasses import asdict

import triton
import triton.language as tl

from foveate.kernels.triton.offline.build import build
from foveate.kernels.triton.variants import Variant


@triton.jit
def product(a, b, out, size, BLOCK: tl.constexpr):
    row = tl.arange(0, BLOCK)
    square = row[:, None] * BLOCK + row[None, :]
    acc = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        left = tl.load(a + start * BLOCK + square)
        acc = tl.dot(left, tl.load(b + start * BLOCK + square), acc)
    tl.store(out + square, acc)


variant = Variant(
    name="product",
    kernel=product,
    signature={"a": "*bf16", "b": "*bf16", "out": "*fp32", "size": "i32"},
    constexprs={"BLOCK": 32},
    num_warps=1,
    num_stages=2,
)
json.dump([asdict(build(variant, architecture)) for architecture in sys.argv[1:]], sys.stdout)
"""


def test_sass_loops_leave_out_the_retry_and_the_loop_without_products():
    first, second = inner_loops(sass.parse(SASS), sass.is_product)
    assert first == {
        "SYNCS.PHASECHK.TRANS64.TRYWAIT": 1,
        "BRA": 2,
        "HGMMA.64x128x16.F32.BF16": 2,
    }
    assert second == {"HMMA.16816.F32.BF16": 1, "BRA": 2, "FADD": 1, "FFMA": 1}


def test_outer_loop_gives_way_to_the_inner_one():
    nested = SASS.replace("STG.E [R2], R4", "HMMA.16816.F32.BF16 R4, R8, R12, R4").replace(
        "@!P3 BRA `(.L_x_4)", "@!P3 BRA `(.L_x_0)"
    )
    loops = inner_loops(sass.parse(nested), sass.is_product)
    assert [loop.total() for loop in loops] == [5, 5]


def test_sass_reading():
    reading = read_listing(
        sass.parse(SASS), sass, **sass.resources(USAGE), shared=1, tensor_memory=2, threads=32
    )
    assert (reading.registers, reading.spill) == (224, 48)
    assert reading.kinds == ("HGMMA.64x128x16", "HMMA.16816")
    assert reading.loops == (Loop(5, {"HGMMA.64x128x16": 2}), Loop(5, {"HMMA.16816": 1}))


def test_amdgcn_reading():
    used = amdgcn.resources(AMDGCN)
    assert used == {"registers": 256, "spill": 116}
    reading = read_listing(
        amdgcn.parse(AMDGCN), amdgcn, **used, shared=1, tensor_memory=0, threads=64
    )
    assert reading.loops == (Loop(3, {"mfma_32x32x8": 1}),)


@pytest.mark.parametrize("isa", [sass, amdgcn])
def test_unreadable_resources_raise(isa):
    with pytest.raises(ValueError, match=r"REG|vgpr_count"):
        isa.resources("cuobjdump: no such file")


@pytest.mark.parametrize(
    ("opcode", "kind"),
    [
        ("HMMA.16816.F32.BF16", "HMMA.16816"),
        ("HGMMA.64x64x16.F32.BF16", "HGMMA.64x64x16"),
        ("IMMA.16832.S8.S8", "IMMA.16832"),
        ("UTCHMMA", "UTCHMMA"),
        ("UTCHMMA.2CTA", "UTCHMMA"),
        ("UTCATOMSWS.FIND_AND_SET.ALIGN", None),
        ("UTCBAR", None),
        ("HFMA2.BF16", None),
    ],
)
def test_tensor_core_instruction(opcode, kind):
    assert sass.is_product(opcode) is (kind is not None)
    if kind is not None:
        assert sass.product_kind(opcode) == kind


def test_a_kernel_compiles_without_a_gpu(tmp_path):
    if find_spec("triton") is None:
        pytest.skip("no triton here")
    (tmp_path / "kernel.py").write_text(KERNEL)
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "kernel.py", "sm_80", "gfx942"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    nvidia, amd = json.loads(done.stdout)
    for reading, kind in ((nvidia, "HMMA.16816"), (amd, "mfma_32x32x8")):
        assert 0 < reading["registers"] <= 255
        assert reading["spill"] == 0
        assert reading["kinds"] == [kind]
        assert reading["loops"][0]["products"][kind] > 0
