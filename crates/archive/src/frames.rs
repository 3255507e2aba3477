//! Whole, verified frames in a row of bytes.

use holdfast_format::journal::{FrameContext, FrameError, FrameHeader};
use holdfast_units::{HybridTime, LogPosition};

/// The frames at the beginning of some bytes.
pub(crate) struct Frames<'a> {
    bytes: &'a [u8],
    /// What the next frame must fit.
    pub(crate) context: FrameContext,
    /// The bytes of the frames so far.
    pub(crate) taken: usize,
    /// The time of the newest record so far.
    pub(crate) time: HybridTime,
}

impl<'a> Frames<'a> {
    pub(crate) const fn new(bytes: &'a [u8], context: FrameContext, time: HybridTime) -> Self {
        Self { bytes, context, taken: 0, time }
    }

    /// The next frame, if it is whole; `None` at the end of the bytes, also within a frame.
    ///
    /// # Errors
    /// [`FrameError`] when what is there is not the frame that belongs there.
    pub(crate) fn next(&mut self) -> Result<Option<FrameHeader>, FrameError> {
        let rest = &self.bytes[self.taken..];
        if rest.is_empty() {
            return Ok(None);
        }
        let frame = match FrameHeader::decode(rest, self.context.alignment) {
            Err(FrameError::Short) => return Ok(None),
            other => other?,
        };
        frame.follows(&self.context)?;
        let Some(bytes) = usize::try_from(frame.len).ok().and_then(|len| rest.get(..len)) else {
            return Ok(None);
        };
        frame.check_payloads(bytes, self.context.alignment)?;
        self.taken += bytes.len();
        self.context.position = frame.end();
        self.context.epoch = frame.epoch;
        self.time = frame.records.last().map_or(self.time, |last| self.time.max(last.time));
        Ok(Some(frame))
    }

    /// Takes all whole frames.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub(crate) fn take_all(&mut self) -> Result<(), FrameError> {
        while self.next()?.is_some() {}
        Ok(())
    }

    /// The position of the first record that is later than `time`, if there is one.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub(crate) fn position_after(
        mut self,
        time: HybridTime,
    ) -> Result<Option<LogPosition>, FrameError> {
        while let Some(frame) = self.next()? {
            let later = (0..).zip(&frame.records).find(|(_, record)| record.time > time);
            if let Some((index, _)) = later {
                return Ok(Some(frame.position.after(index)));
            }
        }
        Ok(None)
    }
}
