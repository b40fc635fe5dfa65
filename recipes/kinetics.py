"""Fine-tune a pretrained video network with SliceFine; by default I3D on a small made-up set, with no downloads.

python recipes/kinetics.py fit                                     # eight motions, SYNTHETIC videos; minutes on a CPU
python recipes/kinetics.py fit --data.root DIR                      # videos of your own
python recipes/kinetics.py fit --data.root /data/k400 --config recipes/configs/kinetics_real.yaml     # the real thing
python recipes/kinetics.py fit --slicefine null --model.lr 1.0e-4    # full fine-tuning instead
python recipes/kinetics.py predict --ckpt_path runs/kinetics/version_0/checkpoints/last.ckpt --data.predict_path a.mp4
python recipes/kinetics.py predict --model.backbone runs/kinetics/version_0/export --data.predict_path folder_of_videos

``--data.root`` takes root/{train,val,test}/<class>/*.mp4 (also .mov, .m4v, .avi, .mkv, .webm, .ts, .wmv and others),
root/{train,val,test}.csv with lines of ``path label``, or UCF101 and HMDB51 as they are unpacked, with their official
lists.  root/<class>/*.mp4 is split by ``--data.split 0.7/0.1/0.2``, by the content of each file: clips cut out of one
film do not stay together, so make folders for train, val and test of those.  A warning counts the files that are not
used, and says why.  Without a test split the run ends with validation scores.

Clips have the frames, time and size that the backbone was trained on; --data.num_frames, --data.clip_seconds and
--data.crop_size change that.  Those of the made-up set are small.  ``test``, ``validate`` and ``predict`` show a
trained network the clips that training showed it, and refuse others.
"""

from pathlib import Path

from slicefine_pl.cli import run
from slicefine_pl.data import KineticsDataModule
from slicefine_pl.modules import VideoClassifier

if __name__ == "__main__":
    run(VideoClassifier, KineticsDataModule, config=Path(__file__).parent / "configs" / "kinetics.yaml")
