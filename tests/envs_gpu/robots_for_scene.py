"""Small robots that stand on three legs, with what differs between them left open."""

LEG = """<body pos="{x} {y} 0"><joint name="{name}" axis="0 1 0" damping="0.3" armature="0.005"/>
  <geom class="{kind}" type="capsule" fromto="0 0 0 0 0 -0.25" size="0.02" mass="0.2"/></body>"""
LEGS = (("a", 0.1, 0.1), ("b", -0.1, 0.1), ("c", 0.0, -0.1))


def tripod(world="", height=0.29, option="", default="", gravcomp=0, extra="", free="<freejoint/>"):
    """A body on three legs of 0.27 m, its base `height` m over the world's origin, in a `world` of geoms."""
    legs = "".join(LEG.format(name=name, x=x, y=y, kind="foot") for name, x, y in LEGS)
    motors = "".join(f'<position joint="{name}" kp="10" ctrlrange="-1 1"/>' for name, _, _ in LEGS)
    return f"""<mujoco><option timestep="0.004" {option}/>
      <default>{default}<default class="foot"><geom contype="1" conaffinity="1"/></default></default>
      <worldbody>{world}
        <body name="base" pos="0 0 {height}" gravcomp="{gravcomp}">{free}
          <geom class="foot" type="box" size="0.12 0.1 0.04" mass="1"/>{legs}</body>
      </worldbody><actuator>{motors}</actuator>{extra}</mujoco>"""
