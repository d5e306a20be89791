"""Executes the PTX of a compiled kernel on the CPU: what the compiler made of a kernel, without a GPU.

One CTA at a time, its threads in lockstep as long as they take the same branches, one NumPy operation an instruction.
It knows the instructions that the kernels of this project compile to, and refuses others. It is stricter than a device:
an access outside the tensors that were passed, a misaligned access, a barrier or a shuffle that some threads do not
reach, and shared memory that one warp touches after another without a barrier between them are errors.

Semantics: NVIDIA, "Parallel Thread Execution ISA". Floats are IEEE 754 in NumPy, as `.rn` without `.ftz` asks for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

WARP = 32
WIDTHS = {"pred": np.bool_, "b16": np.uint16, "b32": np.uint32, "b64": np.uint64, "f32": np.uint32, "f64": np.uint64}
VIEWS = {
    "b8": np.uint8, "u8": np.uint8, "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "f64": np.float64, "pred": np.bool_,
}  # fmt: skip


class MachineError(Exception):
    """The program did something that a device must not do, or that this machine does not know."""


@dataclass(frozen=True)
class Instruction:
    """`@guard operation operands`; operands are register names, immediates, [address] or {vectors}, as written."""

    operation: str
    operands: tuple[str, ...]
    guard: str | None
    negated: bool
    line: str


@dataclass(frozen=True)
class Program:
    """One kernel: instructions, places of the labels, types of the registers, parameters, and threads of a CTA."""

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    registers: dict[str, type]
    parameters: tuple[tuple[str, str], ...]
    threads: int

    @classmethod
    def parse(cls, ptx: str) -> Program:
        head, body = re.split(r"^\{$", ptx, maxsplit=1, flags=re.M)
        body = re.split(r"^\}$", body, maxsplit=1, flags=re.M)[0]
        parameters = tuple(re.findall(r"\.param \.(\w+)[^,)]*?(\w+_param_\d+)", head))
        threads = int(re.findall(r"\.(?:reqntid|maxntid) (\d+)", head)[0])
        registers: dict[str, type] = {}
        labels: dict[str, int] = {}
        instructions: list[Instruction] = []
        for raw in body.splitlines():
            line = raw.split("//")[0].strip()
            if label := re.fullmatch(r"(\$\w+):", line):
                labels[label[1]] = len(instructions)
            elif declared := re.fullmatch(r"\.reg \.(\w+)\s+%(\w+)<\d+>;", line):
                registers[declared[2]] = WIDTHS[declared[1]]
            elif line and not line.startswith("."):
                instructions += [_instruction(part.strip()) for part in line.split(";") if part.strip()]
        return cls(tuple(instructions), labels, registers, parameters, threads)


def _instruction(text: str) -> Instruction:
    found = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)(?:\s+(.*))?", text)
    if not found:
        raise MachineError(f"not an instruction: {text!r}")
    negated, guard, operation, operands = found.groups()
    # Commas inside braces belong to a vector.
    parts = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", operands or "")
    return Instruction(operation, tuple(part.strip() for part in parts), guard, bool(negated), text)


@dataclass
class Shared:
    """Shared memory of one CTA that notices a missing barrier."""

    size: int
    epoch: int = 1
    data: np.ndarray = field(init=False)
    written: np.ndarray = field(init=False)
    read: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.data = np.zeros(self.size, np.uint8)
        # (epoch, warp) of the last access to each byte; warp -2: several.
        self.written = np.zeros((self.size, 2), np.int64)
        self.read = np.zeros((self.size, 2), np.int64)

    def load(self, places: np.ndarray, warps: np.ndarray) -> np.ndarray:
        """Bytes at `places` (threads, bytes)."""
        self._inside(places)
        warps = np.broadcast_to(warps[:, None], places.shape)
        stamp = self.written[places]
        if ((stamp[..., 0] == self.epoch) & (stamp[..., 1] != warps)).any():
            raise MachineError("shared memory is read where another warp wrote since the last barrier")
        several = (self.read[places, 0] == self.epoch) & (self.read[places, 1] != warps)
        self.read[places, 0] = self.epoch
        self.read[places, 1] = np.where(several, -2, warps)
        for place in np.unique(places[several]) if several.any() else ():
            self.read[place, 1] = -2
        return self.data[places]

    def store(self, places: np.ndarray, values: np.ndarray, warps: np.ndarray) -> None:
        self._inside(places)
        warps = np.broadcast_to(warps[:, None], places.shape)
        for stamps in (self.written[places], self.read[places]):
            if ((stamps[..., 0] == self.epoch) & (stamps[..., 1] != warps)).any():
                raise MachineError("shared memory is written where another warp was since the last barrier")
        self.data[places] = values
        if (self.data[places] != values).any():
            raise MachineError("two threads write different values to one place of shared memory")
        self.written[places, 0] = self.epoch
        self.written[places, 1] = warps

    def _inside(self, places: np.ndarray) -> None:
        if places.size and not (places.min() >= 0 and places.max() < self.size):
            raise MachineError(f"access outside the {self.size} bytes of shared memory")


class Machine:
    """Runs a Program over a grid."""

    def __init__(self, program: Program, *, shared: int) -> None:
        self.program, self.shared_size = program, shared

    def run(self, programs: int, arguments: Sequence[torch.Tensor | int | float]) -> None:
        """Execute every CTA. Tensors are read and written in place; nothing else can be reached."""
        self.buffers = {}
        values: list[int] = []
        for argument, (kind, _) in zip(arguments, self.program.parameters, strict=False):
            if isinstance(argument, torch.Tensor):
                flat = argument.view(torch.uint8).reshape(-1) if argument.numel() else torch.empty(0, dtype=torch.uint8)
                self.buffers[argument.data_ptr()] = flat.numpy()
                values.append(argument.data_ptr())
            elif kind == "f32":
                values.append(int(np.float32(argument).view(np.uint32)))
            else:
                values.append(int(argument) & (2**64 - 1))
        values += [0] * (len(self.program.parameters) - len(values))  # scratch pointers that nothing uses
        self.values = {name: value for (_, name), value in zip(self.program.parameters, values, strict=True)}
        self.bases = np.array(sorted(base for base, data in self.buffers.items() if data.size), dtype=np.uint64)
        self.sizes = np.array([self.buffers[int(base)].size for base in self.bases], dtype=np.uint64)
        with np.errstate(all="ignore"):
            for block in range(programs):
                self._run_block(block)

    def _run_block(self, block: int) -> None:
        count = self.program.threads
        self.thread = np.arange(count)
        self.warps = self.thread // WARP
        self.block = block
        self.files: dict[str, np.ndarray] = {}
        self.shared = Shared(self.shared_size)
        place, parted = 0, None
        while True:
            here = np.ones(count, bool)
            if parted is not None:  # the threads that are furthest behind go first, so that all meet again
                place = int(parted.min())
                here = parted == place
                if here.all():
                    parted = None
            step = self.program.instructions[place]
            active = here
            if step.guard:
                active = here & (self._read(step.guard, "pred") != step.negated)
            if step.operation in ("bra", "bra.uni"):
                target = self.program.labels[step.operands[0]]
                if parted is None and (active.all() or not active.any()):
                    place = target if active.all() else place + 1
                else:
                    parted = np.full(count, place) if parted is None else parted
                    parted = np.where(active, target, np.where(here, place + 1, parted))
                continue
            if step.operation == "ret":
                if not active.all():
                    raise MachineError("some threads return before others")
                return
            try:
                self._execute(step, active)
            except MachineError as cause:
                raise MachineError(f"{cause} at: {step.line}") from cause
            place += 1
            if parted is not None:
                parted = np.where(here, place, parted)

    # Operands.

    def _file(self, name: str) -> np.ndarray:
        if name not in self.files:
            prefix = re.fullmatch(r"%([a-z]+)\d+", name)
            if prefix is None or prefix[1] not in self.program.registers:
                raise MachineError(f"unknown register {name}")
            self.files[name] = np.zeros(self.program.threads, self.program.registers[prefix[1]])
        return self.files[name]

    def _read(self, text: str, kind: str) -> np.ndarray:
        """An operand as an array of `kind`, one entry a thread."""
        wanted = np.dtype(VIEWS[kind])
        special = {"%tid.x": self.thread, "%ctaid.x": self.block, "%laneid": self.thread % WARP, "global_smem": 0}
        if text in special:
            return np.broadcast_to(np.asarray(special[text]).astype(wanted), self.thread.shape)
        if text.startswith("%"):
            bits = self._file(text)
            if bits.dtype.itemsize > wanted.itemsize:  # the low part of a wider register
                bits = bits.astype(f"u{wanted.itemsize}")
            return bits.view(wanted) if bits.dtype.itemsize == wanted.itemsize else bits.astype(wanted)
        if text.startswith(("0f", "0d")):
            number = np.array([int(text[2:], 16)], dtype=np.uint32 if text[1] == "f" else np.uint64).view(wanted)
        elif wanted.kind == "f":
            raise MachineError(f"an integer where a float should be: {text}")
        elif kind == "pred":
            number = np.array([int(text) != 0])
        else:
            number = np.array(
                [int(text.rstrip("U"), 0) & ((1 << (8 * wanted.itemsize)) - 1)], dtype=f"u{wanted.itemsize}"
            )
            number = number.view(wanted)
        return np.broadcast_to(number, self.thread.shape)

    def _write(self, name: str, value: np.ndarray, active: np.ndarray) -> None:
        if name == "_":
            return
        held = self._file(name)
        if held.dtype == np.bool_:
            bits = value.astype(bool)
        else:  # a narrower signed value is extended by its sign, an unsigned one by zeros
            wide = value if value.dtype.itemsize == held.dtype.itemsize else value.astype(_widened(value, held))
            bits = np.ascontiguousarray(wide).view(held.dtype)
        self.files[name] = np.where(active, bits, held)

    # Memory.

    def _address(self, text: str) -> np.ndarray:
        base, _, offset = text[1:-1].partition("+")
        kind = "u64" if base.strip().startswith("%rd") else "u32"
        return self._read(base.strip(), kind).astype(np.int64) + int(offset.strip() or "0", 0)

    def _global(self, address: np.ndarray, size: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each tensor that is touched: its bytes, the threads that touch it, and where (threads, size)."""
        if (address % size).any():
            raise MachineError("misaligned access to global memory")
        which = np.searchsorted(self.bases, address.astype(np.uint64), side="right").astype(np.int64) - 1
        if address.size and (which.min() < 0 or self.bases.size == 0):
            raise MachineError("access outside every tensor")
        found = []
        for number in np.unique(which):
            threads = np.flatnonzero(which == number)
            offset = address[threads] - int(self.bases[number])
            if offset.max() + size > int(self.sizes[number]):
                raise MachineError(f"access {int(offset.max())} bytes into a tensor of {int(self.sizes[number])}")
            found.append((self.buffers[int(self.bases[number])], threads, offset[:, None] + np.arange(size)))
        return found

    def _load(self, space: str, address: np.ndarray, size: int, active: np.ndarray) -> np.ndarray:
        """(threads, size) bytes; zeros where a thread is not active."""
        loaded = np.zeros((address.size, size), np.uint8)
        chosen = np.flatnonzero(active)
        if space == "shared":
            loaded[chosen] = self.shared.load(address[chosen, None] + np.arange(size), self.warps[chosen])
        else:
            for data, threads, places in self._global(address[chosen], size):
                loaded[chosen[threads]] = data[places]
        return loaded

    def _store(self, space: str, address: np.ndarray, values: np.ndarray, active: np.ndarray) -> None:
        chosen = np.flatnonzero(active)
        size = values.shape[1]
        if space == "shared":
            places = address[chosen, None] + np.arange(size)
            self.shared.store(places, values[chosen], self.warps[chosen])
        else:
            for data, threads, places in self._global(address[chosen], size):
                data[places] = values[chosen[threads]]

    # Instructions.

    def _execute(self, step: Instruction, active: np.ndarray) -> None:
        name, *modifiers = step.operation.split(".")
        special: dict[str, Callable[..., None]] = {
            "ld": self._do_ld, "st": self._do_st, "ldmatrix": self._do_ldmatrix, "stmatrix": self._do_stmatrix,
            "atom": self._do_atom, "red": self._do_atom, "bar": self._do_bar, "cvt": self._do_cvt,
            "setp": self._do_setp, "mov": self._do_mov, "shfl": self._do_shfl, "redux": self._do_redux,
            "selp": self._do_selp, "mul": self._do_mul, "mad": self._do_mul,
        }  # fmt: skip
        if name in special:
            special[name](modifiers, step.operands, active)
            return
        kind = modifiers[-1]
        target, *sources = step.operands
        values = [self._read(source, kind) for source in sources]
        if kind.startswith("f") and modifiers[:-1] not in (["rn"], []):
            raise MachineError(f"a float operation that does not round to nearest: {step.operation}")
        if kind.startswith("f") and name in ("add", "sub", "div", "sqrt") and modifiers[:-1] != ["rn"]:
            raise MachineError(f"a float operation without a rounding: {step.operation}")
        self._write(target, self._plain(name, modifiers, kind, values), active)

    def _plain(self, name: str, modifiers: list[str], kind: str, values: list[np.ndarray]) -> np.ndarray:
        """Operations whose sources and result have one type."""
        bits = 8 * np.dtype(VIEWS[kind]).itemsize
        two = {
            "add": np.add, "sub": np.subtract, "div": np.divide, "min": np.minimum, "max": np.maximum,
            "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
        }  # fmt: skip
        if name in two and (name != "div" or kind.startswith("f")):
            return two[name](*values)
        if name == "sqrt":
            return np.sqrt(values[0])
        if name == "not":
            return ~values[0]
        if name == "neg":
            return -values[0]
        if name in ("shl", "shr"):
            amount = values[1].view(f"u{bits // 8}").astype(np.uint64) if name == "shl" else values[1].astype(np.uint64)
            shift = np.minimum(amount, np.uint64(bits - 1)).astype(values[0].dtype)
            moved = np.left_shift(values[0], shift) if name == "shl" else np.right_shift(values[0], shift)
            return (
                moved
                if kind.startswith("s") and name == "shr"
                else np.where(amount < bits, moved, 0).astype(moved.dtype)
            )
        if name == "bfe" and kind in ("u32", "s32"):  # shifted to the top and back, so that s32 brings its sign
            first, length = values[1].astype(np.int64), values[2].astype(np.int64)
            if ((first < 0) | (length < 1) | (first + length > 32)).any():
                raise MachineError("a bit field that is not inside its word")
            top = (values[0].view(np.uint32) << (32 - first - length).astype(np.uint32)).view(values[0].dtype)
            return top >> (32 - length).astype(values[0].dtype)
        if name == "prmt":  # byte i of the result is the byte of b:a that nibble i of c names
            if kind != "b32" or (values[2] & np.uint32(0x8888)).any():
                raise MachineError("a permutation that copies signs")
            both = np.concatenate([v[:, None].view(np.uint8) for v in (np.ascontiguousarray(v) for v in values[:2])], 1)
            picks = (values[2][:, None] >> np.arange(0, 16, 4, dtype=np.uint32)) & np.uint32(7)
            return np.take_along_axis(both, picks.astype(np.int64), 1).view(np.uint32)[:, 0]
        if name == "shf" and modifiers[:2] == ["l", "wrap"]:
            low, high, amount = (v.astype(np.uint64) for v in values)
            both = (high << np.uint64(32)) | low
            return ((both << (amount & np.uint64(31))) >> np.uint64(32)).astype(np.uint32)
        raise MachineError(f"unknown operation {name}.{'.'.join(modifiers)}")

    def _do_mul(self, modifiers: list[str], operands: tuple[str, ...], active: np.ndarray) -> None:
        """mul.rn, mul.lo, mul.wide, and the integer mad.lo and mad.wide."""
        kind = modifiers[-1]
        a, b = self._read(operands[1], kind), self._read(operands[2], kind)
        if modifiers[0] == "wide":
            wide = np.int64 if kind == "s32" else np.uint64
            product = a.astype(wide) * b.astype(wide)
        elif modifiers[0] == "lo" or (kind.startswith("f") and modifiers[0] == "rn" and len(operands) == 3):
            product = a * b
        elif modifiers[0] == "hi":
            exact = [int(x) * int(y) >> (8 * a.dtype.itemsize) for x, y in zip(a, b, strict=True)]
            product = np.array(exact, dtype=a.dtype)
        else:
            raise MachineError(f"unknown multiplication {modifiers}")
        if len(operands) == 4:
            product = product + self._read(operands[3], "s64" if product.dtype == np.int64 else _kind(product))
        self._write(operands[0], product, active)

    def _do_ld(self, modifiers: list[str], operands: tuple[str, ...], active: np.ndarray) -> None:
        space, kind = modifiers[0], modifiers[-1]
        if space == "param":
            value = self.values[operands[1][1:-1]]
            narrow = np.array([value & ((1 << (8 * np.dtype(VIEWS[kind]).itemsize)) - 1)], dtype=np.uint64)
            typed = narrow.astype(f"u{np.dtype(VIEWS[kind]).itemsize}").view(VIEWS[kind])
            self._write(operands[0], np.broadcast_to(typed, self.thread.shape), active)
            return
        targets = _vector(operands[0])
        size = np.dtype(VIEWS[kind]).itemsize
        loaded = self._load(space, self._address(operands[1]), size * len(targets), active)
        for number, target in enumerate(targets):
            part = np.ascontiguousarray(loaded[:, number * size : (number + 1) * size]).view(VIEWS[kind])[:, 0]
            self._write(target, part, active)

    def _do_st(self, modifiers: list[str], operands: tuple[str, ...], active: np.ndarray) -> None:
        kind = modifiers[-1]
        size = np.dtype(VIEWS[kind]).itemsize
        parts = [np.ascontiguousarray(self._read(source, kind)) for source in _vector(operands[1])]
        values = np.concatenate([part.view(np.uint8).reshape(-1, size) for part in parts], axis=1)
        self._store(modifiers[0], self._address(operands[0]), values, active)

    def _do_ldmatrix(self, modifiers: list[str], operands: tuple[str, ...], active: np.ndarray) -> None:
        """Matrix j's eight rows of 16 bytes are at the addresses of threads 8j ... 8j + 7 of the warp."""
        if modifiers[-3:] != ["x4", "shared", "b16"] or not active.all():
            raise MachineError(f"unknown ldmatrix {modifiers}")
        rows = self._load("shared", self._address(operands[1]), 16, active).reshape(-1, 4, 8, 4, 4)
        for number, target in enumerate(_vector(operands[0])):
            self._write(target, np.ascontiguousarray(rows[:, number]).reshape(-1, 4).view(np.uint32)[:, 0], active)

    def _do_stmatrix(self, modifiers: list[str], operands: tuple[str, ...], active: np.ndarray) -> None:
        if modifiers[-3:] != ["x4", "shared", "b16"] or not active.all():
            raise MachineError(f"unknown stmatrix {modifiers}")
        sources = [np.ascontiguousarray(self._read(source, "b32")) for source in _vector(operands[1])]
        parts = np.stack([source.view(np.uint8).reshape(-1, 8, 4, 4) for source in sources], axis=1)
        self._store("shared", self._address(operands[0]), parts.reshape(-1, 16), active)

    def _do_atom(self, modifiers: list[str], operands: tuple[str, ...], active: np.ndarray) -> None:
        """64-bit integer addition in global memory, a thread at a time; atom returns the value before, red does not."""
        *target, place, source = operands
        if modifiers[0] != "global" or modifiers[-2:] != ["add", "u64"]:
            raise MachineError(f"unknown atomic {modifiers}")
        address, addend = self._address(place), self._read(source, "u64")
        before = np.zeros(address.size, np.uint64)
        for thread in np.flatnonzero(active):
            ((data, _, places),) = self._global(address[thread : thread + 1], 8)
            cell = data[places[0, 0] : places[0, 0] + 8].view(np.uint64)
            before[thread] = cell[0]
            cell[0] = cell[0] + addend[thread]
        for name in target:
            self._write(name, before, active)

    def _do_bar(self, modifiers: list[str], operands: tuple[str, ...], active: np.ndarray) -> None:
        if not active.all():
            raise MachineError("a barrier that some threads do not reach")
        if modifiers == ["sync"]:
            self.shared.epoch += 1
        elif modifiers != ["warp", "sync"]:
            raise MachineError(f"unknown barrier {modifiers}")

    def _do_cvt(self, modifiers: list[str], operands: tuple[str, ...], active: np.ndarray) -> None:
        *rounding, to, source = modifiers
        value = self._read(operands[1], source)
        into_float, from_float = to.startswith("f"), source.startswith("f")
        exact = (not into_float and not from_float) or (to, source) == ("f64", "f32")
        if rounding != ([] if exact else ["rzi"] if from_float and not into_float else ["rn"]):
            raise MachineError(f"unknown rounding of a conversion: {modifiers}")
        if from_float and not into_float:  # toward zero; NaN becomes 0, and what is too large the largest
            limits = np.iinfo(VIEWS[to])
            inside = (value > float(limits.min)) & (value < float(limits.max))
            converted = np.trunc(np.where(inside, value, 0)).astype(VIEWS[to])
            converted = np.where(value >= float(limits.max), limits.max, converted)
            value = np.where(value <= float(limits.min), limits.min, converted).astype(VIEWS[to])
        self._write(operands[0], value.astype(VIEWS[to]), active)

    def _do_setp(self, modifiers: list[str], operands: tuple[str, ...], active: np.ndarray) -> None:
        comparison, kind = modifiers[0], modifiers[-1]
        a, b = self._read(operands[1], kind), self._read(operands[2], kind)
        compare = {
            "eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b,
            "neu": a != b, "equ": (a == b) | (a != a) | (b != b),
        }  # fmt: skip
        if comparison not in compare or len(modifiers) != 2 or (comparison == "ne" and kind.startswith("f")):
            raise MachineError(f"unknown comparison {modifiers}")
        self._write(operands[0], compare[comparison], active)

    def _do_selp(self, modifiers: list[str], operands: tuple[str, ...], active: np.ndarray) -> None:
        kind = modifiers[0].replace("f", "b") if not any(o.startswith(("0f", "0d")) for o in operands) else modifiers[0]
        a, b, chosen = self._read(operands[1], kind), self._read(operands[2], kind), self._read(operands[3], "pred")
        self._write(operands[0], np.where(chosen, a, b), active)

    def _do_mov(self, modifiers: list[str], operands: tuple[str, ...], active: np.ndarray) -> None:
        """Moves, and moves between a register and the narrower registers that make it up."""
        kind = modifiers[0]
        size = 0 if kind == "pred" else np.dtype(VIEWS[kind]).itemsize
        if operands[0].startswith("{"):
            targets = _vector(operands[0])
            parts = (
                np.ascontiguousarray(self._read(operands[1], kind))
                .view(np.uint8)
                .reshape(-1, len(targets), size // len(targets))
            )
            for number, target in enumerate(targets):
                part = np.ascontiguousarray(parts[:, number]).view(f"u{size // len(targets)}")[:, 0]
                self._write(target, part, active)
        elif operands[1].startswith("{"):
            sources = _vector(operands[1])
            kind_of_part = f"b{8 * size // len(sources)}"
            parts = [np.ascontiguousarray(self._read(source, kind_of_part)).view(np.uint8) for source in sources]
            joined = np.concatenate([part.reshape(-1, size // len(sources)) for part in parts], axis=1)
            self._write(operands[0], np.ascontiguousarray(joined).view(f"u{size}")[:, 0], active)
        else:
            literal = operands[1].startswith(("0f", "0d"))
            self._write(operands[0], self._read(operands[1], kind.replace("b", "f") if literal else kind), active)

    def _do_shfl(self, modifiers: list[str], operands: tuple[str, ...], active: np.ndarray) -> None:
        """Butterfly: each lane gets the value of the lane whose number differs in the bits of the mask."""
        if modifiers != ["sync", "bfly", "b32"] or operands[3:] != ("31", "-1") or not active.all():
            raise MachineError(f"unknown shuffle {modifiers} {operands}")
        partner = self.warps * WARP + ((self.thread % WARP) ^ int(operands[2], 0))
        self._write(operands[0], self._read(operands[1], "b32")[partner], active)

    def _do_redux(self, modifiers: list[str], operands: tuple[str, ...], active: np.ndarray) -> None:
        reduce = {"min": np.min, "max": np.max, "add": np.sum, "or": np.bitwise_or.reduce}
        _, operation, kind = modifiers
        if operation not in reduce or not active.all():
            raise MachineError(f"unknown reduction {modifiers}")
        value = self._read(operands[1], kind).reshape(-1, WARP)
        result = reduce[operation](value, axis=1).astype(value.dtype)
        self._write(operands[0], np.repeat(result, WARP), active)


def _vector(text: str) -> list[str]:
    return [part.strip() for part in text.strip("{} ").split(",")]


def _kind(value: np.ndarray) -> str:
    return f"{'s' if value.dtype.kind == 'i' else 'u'}{8 * value.dtype.itemsize}"


def _widened(value: np.ndarray, held: np.ndarray) -> np.dtype[Any]:
    """The type of `value`'s signedness that is as wide as a register."""
    return np.dtype(f"{'i' if value.dtype.kind == 'i' else 'u'}{held.dtype.itemsize}")
