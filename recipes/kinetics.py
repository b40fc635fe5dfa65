"""Fine-tune a pretrained video network with SliceFine. The default is I3D on synthetic videos, without downloads.

python recipes/kinetics.py fit                                     # SYNTHETIC videos of eight motions; minutes on a CPU
python recipes/kinetics.py fit --data.root DIR                      # videos of your own
python recipes/kinetics.py fit --data.root /data/k400 --config recipes/configs/kinetics_real.yaml     # Kinetics
python recipes/kinetics.py fit --slicefine null                      # full fine-tuning instead
python recipes/kinetics.py predict --ckpt_path runs/kinetics/version_0/checkpoints/last.ckpt --data.predict_path a.mp4
python recipes/kinetics.py predict --model.backbone runs/kinetics/version_0/export --data.predict_path folder_of_videos

``--data.root`` takes root/{train,val,test}/<class>/*.mp4 (also .mov, .m4v, .avi, .mkv, .webm, .ts, .wmv and others),
root/{train,val,test}.csv with lines of ``path label``, or UCF101 and HMDB51 as they are unpacked, with their official
lists. ``--data.split 0.7/0.1/0.2`` splits root/<class>/*.mp4 by the content of each file. Clips cut from one film may
then be in different splits, so make folders for train, val and test instead. A warning counts the files that are not
used, with the reason. Without a test split the run ends with validation scores.

Number of frames, duration and size of the clips are those that the backbone was trained with. --data.num_frames,
--data.clip_seconds and --data.crop_size change them. The synthetic videos are small. ``test``, ``validate`` and
``predict`` present clips as training did, and refuse other settings.
"""

from pathlib import Path

from slicefine_pl.cli import run
from slicefine_pl.data import KineticsDataModule
from slicefine_pl.modules import VideoClassifier

if __name__ == "__main__":
    run(VideoClassifier, KineticsDataModule, config=Path(__file__).parent / "configs" / "kinetics.yaml")
