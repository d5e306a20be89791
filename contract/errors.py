"""Error types. Privacy failures are exceptions with a type of their own, never warnings.

A message names the requirement, the value, the place and the way out, in that order of need.
"""


class SamelawError(Exception):
    """Base of every error that samelaw raises on purpose."""


class InputError(SamelawError, ValueError):
    """A value handed in by the user does not meet a stated requirement."""


class DataError(InputError):
    """A data set is missing, damaged or malformed."""


class SchemaError(InputError):
    """A file does not match its versioned schema."""


class UntrustedFileError(InputError):
    """A file from elsewhere is not what it must be to be judged: unreadable, malformed, or too large."""


class PrivacyError(SamelawError):
    """Going on would give less privacy than the ledger claims."""


class UnsettledReleaseError(PrivacyError):
    """Weights were about to leave while rows still owe noise."""


class DataDependentRateError(PrivacyError):
    """A learning rate is not a declared function of the step alone."""


class MixedExamplesError(PrivacyError):
    """A layer lets one example's gradient depend on another example."""


class UnsupportedLayerError(PrivacyError):
    """Per-example gradients of this layer or option cannot be bounded."""


class LedgerError(PrivacyError):
    """The ledger is damaged, or disagrees with what it is compared with."""


class ResumeError(PrivacyError):
    """Resuming from this checkpoint would repeat or skip a draw."""


class NoiseKeyError(PrivacyError):
    """The noise key is missing, unreadable, or not the key of this run."""


class AddressError(PrivacyError):
    """A noise address does not fit its field; wrapping it would repeat a draw."""


class SamelawWarning(UserWarning):
    """Something worth knowing that costs no privacy."""
