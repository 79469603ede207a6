"""Captions to token ids: the byte-pair encoding of CLIP.

Byte-pair encoding: Sennrich et al., "Neural Machine Translation of Rare Words
with Subword Units", 2016, arXiv:1508.07909. Over bytes, lower-cased, with a mark
at the end of a word: Radford et al. (CLIP), 2021, section 2.4, as published with
its weights.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import pathlib
import warnings
import zlib
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

START = '<|startoftext|>'
END = '<|endoftext|>'
WORD_END = '</w>'

FILE_NAME = 'tokenizer.json'

# What CLIP takes for a word: a special token, an English clitic, letters, one
# digit, or anything else without a gap. Input is lower-cased by then.
_WORDS = '|'.join(
  (
    r'<\|startoftext\|>',
    r'<\|endoftext\|>',
    r"'(?:s|t|re|ve|m|ll|d)",
    r'\p{L}+',
    r'\p{N}',
    r'[^\s\p{L}\p{N}]+',
  )
)


class Tokenizer:
  """A byte-pair tokenizer: every caption has an encoding, none is unknown.

  Made by `train`, `load` or one of the `from_` methods. It may be pickled.

  Attributes:
    context_length: length of each encoding, start and end tokens included.
    vocab_size: number of token ids, special ones included.
    start_token: id of the token that begins a caption.
    end_token: id of the token that ends it; what follows is padding, the same.
  """

  def __init__(self, backend: tokenizers.Tokenizer):
    """Takes a backend as assembled below; see the class methods to make one.

    Raises:
      ValueError: if the backend lacks a context length or a special token.
    """
    start, end = backend.token_to_id(START), backend.token_to_id(END)
    if not backend.truncation or not backend.padding:
      raise ValueError('it does not say its context length')
    if start is None or end is None:
      raise ValueError(f'it lacks the tokens {START} and {END}')
    self._backend = backend
    self.context_length: int = backend.truncation['max_length']
    self.vocab_size = backend.get_vocab_size()
    self.start_token = start
    self.end_token = end

  @classmethod
  def train(cls, captions: Iterable[str], vocab_size: int, context_length: int) -> Self:
    """Learns a vocabulary.

    The same captions give the same tokenizer, byte for byte.

    Args:
      captions: text to learn frequent words from, read once.
      vocab_size: number of ids at most, and exactly, unless the captions hold too
        few pairs that occur twice. 512 go to single bytes, within words and at
        their end, and two to the start and end tokens, which come last.
      context_length: length of each encoding.

    Raises:
      ValueError: if `vocab_size` or `context_length` is too small.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet += [byte + WORD_END for byte in alphabet]
    smallest = len(alphabet) + 2
    if vocab_size < smallest:
      raise ValueError(f'vocab_size is {vocab_size}; give {smallest} or more.')
    learner = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    learner.normalizer = _cleaning()
    learner.pre_tokenizer = _splitting()
    trainer = trainers.BpeTrainer(
      vocab_size=vocab_size - 2,
      min_frequency=2,
      end_of_word_suffix=WORD_END,
      # Named here, bytes get their ids in this order. The trainer would number
      # those at the end of a word in the order of a hash table, which differs
      # from run to run, and settles ties between pairs by those numbers.
      special_tokens=alphabet,
      show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    learned = json.loads(learner.to_str())['model']
    vocab = learned['vocab']
    vocab |= {START: len(vocab), END: len(vocab) + 1}
    merges = [tuple(pair) for pair in learned['merges']]
    model = models.BPE(vocab, merges, end_of_word_suffix=WORD_END)
    return cls(_assemble(model, context_length))

  @classmethod
  def from_clip(
    cls,
    vocab_json: str | os.PathLike[str],
    merges_txt: str | os.PathLike[str],
    context_length: int = 77,
  ) -> Self:
    """Opens CLIP's own vocabulary, as published with `CLIPTokenizer`.

    Args:
      vocab_json: path of the object from tokens to ids.
      merges_txt: path of the merges, one pair a line, most frequent first.
      context_length: length of each encoding.

    Raises:
      OSError: if a file cannot be read.
      ValueError: if the files do not hold such a vocabulary, or one in which some
        text has no encoding.
    """
    for path in (vocab_json, merges_txt):
      with open(path, 'rb'):  # The library's error would not say which file.
        pass
    try:
      vocab, merges = models.BPE.read_file(os.fspath(vocab_json), os.fspath(merges_txt))
    except Exception as error:  # The library raises bare exceptions.
      raise ValueError(
        f'{vocab_json} and {merges_txt} do not hold a byte-pair vocabulary: {error}'
      ) from error
    return cls._from_vocabulary(
      vocab, merges, context_length, vocab_json, f'{vocab_json} and {merges_txt}'
    )

  @classmethod
  def from_tokenizer_json(
    cls, path: str | os.PathLike[str], context_length: int = 77
  ) -> Self:
    """Opens CLIP's own vocabulary, as newer folders of `CLIPTokenizer` hold it.

    Only the vocabulary and the merges of the file are read.

    Args:
      path: of a `tokenizer.json`.
      context_length: length of each encoding.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it does not hold such a vocabulary, or one in which some text has
        no encoding.
    """
    text = pathlib.Path(path).read_text('utf-8')
    try:
      model = json.loads(text)['model']
      kind, word_end = model.get('type', 'BPE'), model['end_of_word_suffix']
      vocab = {str(token): int(index) for token, index in model['vocab'].items()}
      pairs = (x.split(' ') if isinstance(x, str) else x for x in model['merges'])
      merges = [(str(a), str(b)) for a, b in pairs]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
      raise ValueError(
        f'{path} does not hold a byte-pair vocabulary: {type(error).__name__}: {error}'
      ) from error
    if (kind, word_end) != ('BPE', WORD_END):
      raise ValueError(
        f'{path} holds a model of type {kind!r} with words that end in {word_end!r};'
        f" expected 'BPE' and {WORD_END!r}, as in CLIP."
      )
    return cls._from_vocabulary(vocab, merges, context_length, path, f'parts of {path}')

  @classmethod
  def from_bpe_file(
    cls,
    path: str | os.PathLike[str],
    context_length: int = 77,
    vocab_size: int = 49408,
  ) -> Self:
    """Opens CLIP's own vocabulary, as its authors published it.

    Args:
      path: of `bpe_simple_vocab_16e6.txt.gz`: a head line, then merges, one pair a
        line, most frequent first. Tokens are numbered in that order, after those of
        single bytes.
      context_length: length of each encoding.
      vocab_size: number of ids at most. The file holds more merges than CLIP uses.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is damaged or holds something else.
    """
    # Sorted, the letters that stand for bytes are in the order of that code.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [byte + WORD_END for byte in alphabet]
    most = vocab_size - len(tokens) - 2
    try:
      with gzip.open(path, 'rt', encoding='utf-8') as file:
        lines = [line.split() for line in itertools.islice(file, 1, 1 + max(most, 0))]
        merges = [(a, b) for a, b in lines]
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
      raise ValueError(
        f'{path} is damaged or not bpe_simple_vocab_16e6.txt.gz: {error}. Copy or'
        ' download it again.'
      ) from error
    tokens += [a + b for a, b in merges] + [START, END]
    vocab = {token: i for i, token in enumerate(tokens)}
    return cls._from_vocabulary(vocab, merges, context_length, path, f'lines of {path}')

  @classmethod
  def _from_vocabulary(
    cls,
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    context_length: int,
    path: str | os.PathLike[str],
    parts: str,
  ) -> Self:
    """Checks that a vocabulary is whole; `path` and `parts` name it in messages."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    needed = [START, END, *alphabet, *(byte + WORD_END for byte in alphabet)]
    if missing := [token for token in needed if token not in vocab]:
      raise ValueError(
        f'{path} lacks {len(missing)} tokens that every CLIP vocabulary '
        f'has, {missing[0]!r} first.'
      )
    try:
      model = models.BPE(vocab, merges, end_of_word_suffix=WORD_END)
    except Exception as error:
      raise ValueError(f'{parts} do not belong together: {error}') from error
    return cls(_assemble(model, context_length))

  @classmethod
  def load(cls, folder: str | os.PathLike[str]) -> Self:
    """Opens what `save` wrote.

    Raises:
      OSError: if there is no readable `tokenizer.json` in the folder.
      ValueError: if it is not one that `save` wrote.
    """
    path = pathlib.Path(folder) / FILE_NAME
    text = path.read_text('utf-8')
    try:
      return cls(tokenizers.Tokenizer.from_str(text))
    except Exception as error:  # The library raises bare exceptions.
      raise ValueError(
        f'{path} is not a tokenizer that Tokenizer.save wrote: {error}.'
      ) from error

  def save(self, folder: str | os.PathLike[str]) -> None:
    """Writes `tokenizer.json` into a folder, which is made if need be.

    The one file holds all: vocabulary, cleaning, and the context length as its
    truncation and padding. Other programs on the `tokenizers` library read it.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = self._backend.to_str(pretty=True)
    (folder / FILE_NAME).write_text(text, 'utf-8')

  def encode(self, captions: Sequence[str]) -> np.ndarray:
    """Encodes captions of any length, '' included.

    A caption that is too long keeps its beginning and its end token; one warning
    says how many there were. Lone surrogates, which are no text, become '?'.

    Args:
      captions: B captions.

    Returns:
      int32 (B, context_length).

    Raises:
      TypeError: if the captions are one string, or not strings.
    """
    if isinstance(captions, str):
      raise TypeError('captions is one string; give a list of them.')
    for index, caption in enumerate(captions):
      if not isinstance(caption, str):
        raise TypeError(f'caption {index} is {caption!r}; give a string.')
    text = [caption.encode('utf-8', 'replace').decode() for caption in captions]
    encodings = self._backend.encode_batch(text)
    cut = [i for i, encoding in enumerate(encodings) if encoding.overflowing]
    if cut:
      first = captions[cut[0]]
      shown = first if len(first) <= 60 else first[:59] + '…'
      warnings.warn(
        f'{len(cut)} of {len(captions)} captions are cut to {self.context_length} '
        f'tokens, first {shown!r}.',
        stacklevel=2,
      )
    ids = np.array([encoding.ids for encoding in encodings], np.int32)
    return ids.reshape(len(captions), self.context_length)


def _cleaning() -> normalizers.Normalizer:
  return normalizers.Sequence(
    [
      normalizers.NFC(),
      normalizers.Replace(tokenizers.Regex(r'\s+'), ' '),
      normalizers.Lowercase(),
    ]
  )


def _splitting() -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior='removed', invert=True),
      # Splits once more, by GPT-2's pattern. That shows only in words such as
      # '<|EndOfText|>', and there it is what CLIPTokenizer does.
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )


def _assemble(model: models.BPE, context_length: int) -> tokenizers.Tokenizer:
  if context_length < 3:
    raise ValueError(
      f'context_length is {context_length}; give 3 or more: a start token, an end '
      'token, and a word between.'
    )
  backend = tokenizers.Tokenizer(model)
  backend.normalizer = _cleaning()
  backend.pre_tokenizer = _splitting()
  # As in CLIP, these are special wherever they stand, also inside a caption.
  backend.add_special_tokens([START, END])
  backend.post_processor = processors.TemplateProcessing(
    single=f'{START} $A {END}',
    special_tokens=[(token, backend.token_to_id(token)) for token in (START, END)],
  )
  backend.enable_truncation(context_length)
  backend.enable_padding(
    pad_id=backend.token_to_id(END), pad_token=END, length=context_length
  )
  return backend
